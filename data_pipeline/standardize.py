"""Scaling a column to float32 with mean 0 and standard deviation 1, by the training part."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.gather import Blocks
from data_pipeline.statistics import statistics_axis


@dataclass(frozen=True)
class Standardization:
    """`(x - mean) / std` computed as `float32(x) * scale + offset`, by channel or by feature.

    Each of the steps is rounded the same wherever an element stands in its batch.

    Attributes:
        scale: float32 `(K,)`: one a channel or feature, or a single one.
        offset: float32 `(K,)`.
        axis: The axis of `(B, *shape)` that has K entries; None for a single scale.
    """

    scale: NDArray[np.float32]
    offset: NDArray[np.float32]
    axis: int | None = None

    def apply(self, rows: NDArray[Any], out: NDArray[np.float32]) -> None:
        """Writes the scaled rows `(B, *shape)` to `out`, float32."""
        if len(rows):
            self.gather(Blocks([np.ascontiguousarray(rows)]), np.arange(len(rows)), out)

    def gather(self, blocks: Blocks, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        """Writes some rows, scaled, to `out` `(B, *shape)` in one pass; all must be there.

        Raises:
            DataError: the rows have other channels or features than those that were measured.
        """
        if self.axis is not None and out.shape[self.axis] != len(self.scale):
            raise DataError(
                f"the data set's mean and deviation are of {len(self.scale)} channels or features, "
                f"but a transform of the raw values has made {out.shape[self.axis]} of them: wrap "
                "it in AfterScaling, or set standardize to false"
            )
        if blocks.dtype == np.float16:  # compiled code knows no such numbers
            raw = np.empty(out.shape, np.float16)
            blocks.copy(rows, raw)
            blocks, rows = Blocks([raw.astype(np.float32)]), np.arange(len(rows))
        behind = out.shape[1:] if self.axis is None else out.shape[self.axis + 1 :]
        blocks.scale(rows, self.scale, self.offset, math.prod(behind), out)


def standardization(dataset: Dataset, name: str, *, scaled: bool) -> Standardization | None:
    """The scaling for an input column, or None for one that is left as it is.

    Bytes (uint8), encoded pictures and floats are scaled; other whole numbers are taken for indices
    (tokens), sequences of bytes and texts likewise, and left alone. With `scaled` false, bytes
    become float32 with the values unchanged. A feature that never varies is centred, not divided
    by 0.
    """
    column = dataset.column(name)
    dtype = np.dtype(column.dtype)
    whole = dtype == np.uint8 and not (column.is_ragged and column.kind != "image")
    if not (whole or dtype.kind == "f"):
        return None
    if not scaled:
        one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        return Standardization(one, zero) if whole else None
    statistics = dataset.statistics.get(name)
    axis = _axis(column.kind, column.shape)
    if column.kind == "image":
        wanted = column.shape[0]
    else:
        wanted = 1 if not column.shape else column.shape[(statistics_axis(column.shape) or 1) - 1]
    if statistics is None or not len(statistics.mean) == len(statistics.std) == wanted:
        raise DataError(
            f"{dataset.name}: the manifest lacks the mean and standard deviation of column "
            f"{name!r}, or they are not {wanted}: write the data set anew, or set standardize "
            "to false"
        )
    mean = np.asarray(statistics.mean, dtype=np.float64)
    std = np.asarray(statistics.std, dtype=np.float64)
    scale = 1.0 / np.where(std > 0.0, std, 1.0)
    return Standardization(scale.astype(np.float32), (-mean * scale).astype(np.float32), axis)


def _axis(kind: str, shape: tuple[int, ...]) -> int | None:
    """The axis of a *batch* of the column that has statistics of its own."""
    if kind == "image":
        return 1  # (B, C, H, W) once they are decoded
    own = statistics_axis(shape)
    if own is None:
        return None
    return own + 1 if kind == "sequence" else own  # (B, T, *step)
