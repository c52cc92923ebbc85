"""Scaling a column to float32 with mean 0 and standard deviation 1, by the training part."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.statistics import statistics_axis


@dataclass(frozen=True)
class Standardization:
    """`(x - mean) / std`, by channel or feature, computed as `x * scale + offset`."""

    scale: NDArray[np.float32]
    offset: NDArray[np.float32]

    def apply(self, rows: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Writes the scaled rows `(B, *shape)` to `out`, float32.

        Two steps that are each rounded the same wherever an element stands in its batch.
        """
        np.multiply(rows, self.scale, out=out, casting="unsafe")
        np.add(out, self.offset, out=out)


def standardization(dataset: Dataset, name: str, *, scaled: bool) -> Standardization | None:
    """The scaling for an input column, or None for one that is left as it is.

    Bytes (uint8) and floats are scaled; other whole numbers are taken for indices (tokens) and
    left alone. With `scaled` false, bytes become float32 with the values unchanged. A feature
    that never varies is centred, not divided by 0.
    """
    column = dataset.column(name)
    dtype = np.dtype(column.dtype)
    if not (dtype == np.uint8 or dtype.kind == "f"):
        return None
    if not scaled:
        one, zero = np.ones((), np.float32), np.zeros((), np.float32)
        return Standardization(one, zero) if dtype == np.uint8 else None
    statistics = dataset.statistics.get(name)
    axis = statistics_axis(column.shape)
    wanted = 1 if axis is None else column.shape[axis - 1]
    if statistics is None or not len(statistics.mean) == len(statistics.std) == wanted:
        raise DataError(
            f"{dataset.name}: the manifest lacks the mean and standard deviation of column "
            f"{name!r}, or they are not {wanted}: write the data set anew, or set standardize "
            "to false"
        )
    mean = np.asarray(statistics.mean, dtype=np.float64)
    std = np.asarray(statistics.std, dtype=np.float64)
    scale = 1.0 / np.where(std > 0.0, std, 1.0)
    shape = [1] * (len(column.shape) + 1)
    if axis is not None:
        shape[axis] = -1
    return Standardization(
        scale.reshape(shape).astype(np.float32), (-mean * scale).reshape(shape).astype(np.float32)
    )
