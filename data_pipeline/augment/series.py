"""Sequences and time series: moved in time, or made larger and smaller."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import require, require_at_least, require_range
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import InputTransform, Samples
from data_pipeline.errors import DataError
from data_pipeline.ragged import LENGTHS

FILLS = ("edge", "zeros")
"""What comes in where a series is moved: its first or last step, or zeros."""


@dataclass(frozen=True)
class TimeShift:
    """Moves each series in time by up to `steps` steps either way, both included.

    What leaves it is lost, and its first or last step comes in again ("edge"), or zeros. Only the
    steps that a padded sequence has are moved (its length is in the column NAME_lengths); the
    padding and the length stay.
    """

    steps: int
    fill: str = "edge"

    def __post_init__(self) -> None:
        """Refuses a negative reach and an unknown fill."""
        require_at_least(self, "steps", 0)
        require(self, "fill", self.fill in FILLS, f"be one of {', '.join(FILLS)}")

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Changes the inputs `(B, T)` or `(B, T, F)`, of any dtype."""
        rows = samples.arrays[samples.inputs]
        _check_series("TimeShift", rows)
        time = rows.shape[1]
        lengths = samples.arrays.get(samples.inputs + LENGTHS, np.full(len(rows), time))
        end = np.minimum(lengths, time).astype(np.int64)[:, None]
        steps = np.arange(time)
        wanted = steps - draw.integers(-self.steps, self.steps)[:, None]
        source = np.clip(wanted, 0, np.maximum(end - 1, 0))
        source = np.where(steps < end, source, steps)
        places = source.reshape(*source.shape, *[1] * (rows.ndim - 2))
        moved = np.take_along_axis(rows, places, axis=1)
        if self.fill == "zeros":
            moved[(steps < end) & ((wanted < 0) | (wanted >= end))] = 0
        samples.arrays[samples.inputs] = moved


@dataclass(frozen=True)
class Scaling(InputTransform):
    """Multiplies each series by one random factor in [low, high].

    Um et al., 2017, "Data augmentation of wearable sensor data", with a uniform factor. It comes
    after the scaling by the training data, so that the series grow about their mean.
    """

    low: float
    high: float
    after_scaling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses what is no range of factors."""
        require_range(self, "low", "high", 0)

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """float32 `(B, T)` or `(B, T, F)`."""
        _check_series("Scaling", rows)
        if rows.dtype != np.float32:
            raise DataError(
                f"Scaling works on float32, but the inputs are {rows.dtype} here: leave it out "
                "for tokens"
            )
        factors = draw.uniform(self.low, self.high).astype(np.float32)
        scaled: NDArray[np.float32] = rows * factors.reshape(-1, *[1] * (rows.ndim - 1))
        return scaled


def _check_series(name: str, rows: NDArray[Any]) -> None:
    if rows.ndim not in (2, 3):
        raise DataError(
            f"{name} works on series (T,) or (T, F), but a row of this column has shape "
            f"{rows.shape[1:]}: leave {name} out"
        )
