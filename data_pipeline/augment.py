"""Batch-wise transforms whose parameters are drawn per sample, keyed by the sample's position.

A transform is given the batch and `num_words` random words a sample; the words come from
(seed, epoch, place in the list, position), so that the same sample is changed in the same way by
whichever worker or thread loads it, and anew in every epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.random import derive_key, integers, uniform, words_at


class Transform(Protocol):
    """What the loader calls; any object that has these is one."""

    @property
    def num_words(self) -> int:
        """Random words that one sample needs."""
        ...

    def __call__(self, rows: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """New rows `(B, ...)` from rows `(B, ...)` and words `(B, num_words)`."""
        ...


@dataclass(frozen=True)
class Shift:
    """Moves each image by up to `pixels` along height and along width; `fill` comes in.

    Follows Keras' `width_shift_range` and `height_shift_range` given in whole pixels, with
    `fill_mode="constant"`; both ends are included.
    """

    pixels: int = 1
    fill: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a negative reach."""
        if self.pixels < 0:
            raise ValueError(f"Shift(pixels={self.pixels}): pixels must be 0 or more")

    @property
    def num_words(self) -> int:
        """One for each direction."""
        return 2

    def __call__(self, rows: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Images `(B, C, H, W)`, of any dtype, moved by (dy, dx) in [-pixels, pixels]."""
        _check_images("Shift", rows)
        _check_fill(self.fill, rows.dtype)
        height, width = rows.shape[2:]
        reach = self.pixels
        margins = ((0, 0), (0, 0), (reach, reach), (reach, reach))
        padded = np.pad(rows, margins, constant_values=self.fill)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        offset = integers(words, 0, 2 * reach)
        moved: NDArray[Any] = windows[np.arange(len(rows)), :, offset[:, 0], offset[:, 1]]
        return moved


@dataclass(frozen=True)
class Flip:
    """Mirrors each image left to right with the given probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        """Refuses what is no probability."""
        if not 0.0 <= self.probability <= 1.0:
            raise ValueError(f"Flip(probability={self.probability}): must lie in [0, 1]")

    @property
    def num_words(self) -> int:
        """One: flip or not."""
        return 1

    def __call__(self, rows: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        """Images `(B, C, H, W)`, of any dtype."""
        _check_images("Flip", rows)
        chosen = uniform(words[:, 0]) < self.probability
        return np.where(chosen[:, None, None, None], rows[..., ::-1], rows)


def apply(
    transforms: Sequence[Transform],
    rows: NDArray[Any],
    *,
    seed: int,
    epoch: int,
    first_position: int,
) -> NDArray[Any]:
    """Sends rows `(B, ...)`, which stand at consecutive positions, through all transforms.

    Raises:
        ValueError: a transform gave another shape or dtype, which a buffer would cast silently.
    """
    for place, transform in enumerate(transforms):
        key = derive_key("augment", seed, epoch, place)
        words = words_at(key, first_position, len(rows), transform.num_words)
        changed = transform(rows, words)
        if changed.shape != rows.shape or changed.dtype != rows.dtype:
            raise ValueError(
                f"{type(transform).__name__} made {changed.dtype} of shape {changed.shape} from "
                f"{rows.dtype} of shape {rows.shape}: a transform must keep both"
            )
        rows = changed
    return rows


def _check_fill(fill: float, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iu":
        return
    limits = np.iinfo(dtype)
    if not (limits.min <= fill <= limits.max and float(fill).is_integer()):
        raise DataError(
            f"Shift(fill={fill}) does not fit images of {dtype}: give a whole number from "
            f"{limits.min} to {limits.max}"
        )


def _check_images(name: str, rows: NDArray[Any]) -> None:
    if rows.ndim != 4:
        raise DataError(
            f"{name} works on images (C, H, W), but a row of this column has shape "
            f"{rows.shape[1:]}: leave {name} out, or convert the data to images"
        )
