"""Parts of images, resampled to one size."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import check_pixels, require
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import Cropping
from data_pipeline.compiled import compiled
from data_pipeline.resample import resample_planes

_TRIES = 10
"""How many crops torchvision draws before it takes the largest central one."""


@dataclass(frozen=True)
class _Resampled(Cropping):
    """What all crops do with images that lie in memory."""

    height: int
    width: int

    def __post_init__(self) -> None:
        """Refuses sizes below 1."""
        for argument in ("height", "width"):
            require(self, argument, getattr(self, argument) >= 1, "be 1 or more")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return self.height, self.width

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, height, width)` of images `(B, C, H, W)`, uint8 or float32, bilinear."""
        check_pixels(self, rows)
        count, channels, height, width = rows.shape
        boxes = self.boxes(np.full(count, height), np.full(count, width), draw)
        out = np.empty((count, channels, *self.size), rows.dtype)
        resample_planes(rows, boxes, out)
        return out


@dataclass(frozen=True)
class Resize(_Resampled):
    """The whole image at another size; its sides are stretched apart where the ratio differs."""

    def boxes(
        self,
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        draw: Draw,  # noqa: ARG002
    ) -> NDArray[np.float64]:
        """The whole of each image, `(B, 4)`; nothing is drawn."""
        none = np.zeros(len(heights))
        return np.stack([none, none, heights, widths], axis=1)


@dataclass(frozen=True)
class CenterCrop(_Resampled):
    """The middle of the image: the largest window of the right shape, and `of` that of its sides.

    With the default it is torchvision's usual evaluation of ImageNet in one step: the shorter
    side is resized to 256 and the central 224 pixels are kept, which is 0.875 of them.
    """

    of: float = 0.875

    def __post_init__(self) -> None:
        """Refuses sizes below 1, and a part that is none."""
        super().__post_init__()
        require(self, "of", 0 < self.of <= 1, "lie in (0, 1]")

    def boxes(
        self,
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        draw: Draw,  # noqa: ARG002
    ) -> NDArray[np.float64]:
        """The window in each image, `(B, 4)`; nothing is drawn."""
        scale = self.of * np.minimum(heights / self.height, widths / self.width)
        # Rounding may make a window of the whole larger than the image, which no crop may be.
        tall = np.minimum(scale * self.height, heights)
        wide = np.minimum(scale * self.width, widths)
        return np.stack([(heights - tall) / 2, (widths - wide) / 2, tall, wide], axis=1)


@dataclass(frozen=True)
class RandomResizedCrop(_Resampled):
    """A window of random area, shape and place, resized: torchvision's `RandomResizedCrop`.

    The window's area is uniform in `area`, as a part of the image's; its width over height is
    log-uniform in `ratio`. Both are rounded to whole pixels. As torchvision documents it, ten are
    tried, and where none fits the largest central window of an allowed shape is taken.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        """Refuses sizes below 1, an area that is no part, and a ratio not above 0."""
        super().__post_init__()
        area, ratio = self.area, self.ratio
        rule = "be two numbers, the first not above the second, "
        require(
            self, "area", len(area) == 2 and 0 < area[0] <= area[1] <= 1, f"{rule}both in (0, 1]"
        )
        require(
            self,
            "ratio",
            len(ratio) == 2 and 0 < ratio[0] <= ratio[1] < np.inf,
            f"{rule}both above 0",
        )

    def boxes(
        self, heights: NDArray[np.int64], widths: NDArray[np.int64], draw: Draw
    ) -> NDArray[np.float64]:
        """A window in each image, `(B, 4)`, in whole pixels."""
        numbers = draw.uniform(0.0, 1.0, 2 * _TRIES + 2)
        found = np.empty((len(heights), 4))
        _random_boxes(heights, widths, numbers, *self.area, *self.ratio, found)
        return found


@compiled
def _random_boxes(
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    numbers: NDArray[np.float64],
    least_area: float,
    most_area: float,
    least_ratio: float,
    most_ratio: float,
    out: NDArray[np.float64],
) -> None:
    """`numbers` has area and ratio of each try, and then the place of the one that is taken."""
    low, high = np.log(least_ratio), np.log(most_ratio)
    for sample in range(len(heights)):
        height, width = heights[sample], widths[sample]
        drawn = numbers[sample]
        for attempt in range(_TRIES):
            part = least_area + (most_area - least_area) * drawn[2 * attempt]
            ratio = np.exp(low + (high - low) * drawn[2 * attempt + 1])
            wide = np.rint(np.sqrt(height * width * part * ratio))
            tall = np.rint(np.sqrt(height * width * part / ratio))
            if 0 < wide <= width and 0 < tall <= height:
                out[sample, 0] = np.floor(drawn[2 * _TRIES] * (height - tall + 1))
                out[sample, 1] = np.floor(drawn[2 * _TRIES + 1] * (width - wide + 1))
                break
        else:
            tall, wide = float(height), float(width)
            if wide / tall < least_ratio:
                tall = max(1.0, np.rint(wide / least_ratio))
            elif wide / tall > most_ratio:
                wide = max(1.0, np.rint(tall * most_ratio))
            out[sample, 0] = np.floor((height - tall) / 2)
            out[sample, 1] = np.floor((width - wide) / 2)
        out[sample, 2], out[sample, 3] = tall, wide
