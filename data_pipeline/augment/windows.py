"""Moves by whole pixels and mirroring: what a copy can do, without any interpolation."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import require_at_least, require_probability
from data_pipeline.augment.border import PAD_MODES, check_fill_mode
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import InputTransform, check_fill, check_images


@dataclass(frozen=True)
class Shift(InputTransform):
    """Moves each image by up to `pixels` along height and along width; `fill` comes in.

    Follows Keras' `width_shift_range` and `height_shift_range` given in whole pixels, with its
    `fill_mode`; both ends are included. It is the padded crop of the residual networks as well
    (He et al., 2015, "Deep residual learning", 4.2): pad by `pixels` and crop to the size.
    """

    pixels: int = 1
    fill: float = 0.0
    fill_mode: str = "constant"

    def __post_init__(self) -> None:
        """Refuses a negative reach and an unknown fill mode."""
        require_at_least(self, "pixels", 0)
        check_fill_mode(self)

    def offsets(self, draw: Draw) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each sample's window begins in the image, along height and along width, `(B,)`."""
        return draw.integers(-self.pixels, self.pixels), draw.integers(-self.pixels, self.pixels)

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, H, W)`, of any dtype, moved by (dy, dx) in [-pixels, pixels]."""
        check_images("Shift", rows)
        height, width = rows.shape[2:]
        reach = self.pixels
        margins = ((0, 0), (0, 0), (reach, reach), (reach, reach))
        if self.fill_mode == "constant":
            check_fill("Shift", self.fill, rows.dtype)
            padded = np.pad(rows, margins, constant_values=self.fill)
        else:
            padded = np.pad(rows, margins, mode=PAD_MODES[self.fill_mode])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
        down, right = self.offsets(draw)
        moved: NDArray[Any] = windows[np.arange(len(rows)), :, down + reach, right + reach]
        return moved


@dataclass(frozen=True)
class _Mirror(InputTransform):
    """Mirrors each image along an axis with the given probability."""

    probability: float = 0.5
    axis: ClassVar[int]

    def __post_init__(self) -> None:
        """Refuses what is no probability."""
        require_probability(self, "probability")

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, H, W)`, of any dtype."""
        check_images(type(self).__name__, rows)
        chosen = draw.happens(self.probability)
        return np.where(chosen[:, None, None, None], np.flip(rows, self.axis), rows)


@dataclass(frozen=True)
class Flip(_Mirror):
    """Mirrors each image left to right with the given probability.

    Follows Keras' `horizontal_flip`, whose probability is one half.
    """

    axis: ClassVar[int] = 3


@dataclass(frozen=True)
class VerticalFlip(_Mirror):
    """Turns each image upside down, as a mirror does, with the given probability.

    Follows Keras' `vertical_flip`, whose probability is one half.
    """

    axis: ClassVar[int] = 2
