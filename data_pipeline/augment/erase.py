"""Windows of an image that are blanked out."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import require, require_positive
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.mixing import inside, window
from data_pipeline.augment.transform import InputTransform, check_fill, check_images


@dataclass(frozen=True)
class Cutout(InputTransform):
    """Fills one window of each image, with its centre at a random pixel.

    DeVries and Taylor, 2017, "Improved regularization of convolutional neural networks with
    cutout". `height` and `width` are whole pixels, or fractions of the image's where below 1; what
    leaves the image is cut off. It comes after the scaling, where 0 is the data's mean.
    """

    height: float
    width: float
    fill: float = 0.0
    after_scaling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses sizes that are neither whole pixels nor fractions."""
        for argument in ("height", "width"):
            require_positive(self, argument)
            size = float(getattr(self, argument))
            whole = size < 1 or size.is_integer()
            require(self, argument, whole, "be below 1, or a whole number of pixels")

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, H, W)`, of any dtype."""
        check_images("Cutout", rows)
        check_fill("Cutout", self.fill, rows.dtype)
        masks = []
        for size, part in zip(rows.shape[2:], (self.height, self.width), strict=True):
            length = round(size * part) if part < 1 else int(part)
            first, behind = window(size, np.full(len(rows), length), draw)
            masks.append(inside(first, behind, size))
        covered = masks[0][:, None, :, None] & masks[1][:, None, None, :]
        return np.where(covered, np.asarray(self.fill, rows.dtype), rows)
