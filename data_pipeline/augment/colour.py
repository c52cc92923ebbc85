"""Changes of the values of an image, the same for all of its pixels."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import check_pixels, require, require_at_least, require_range
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import InputTransform


@dataclass(frozen=True)
class ChannelShift(InputTransform):
    """Adds one random amount in [-reach, reach] to all channels of an image.

    Keras' `channel_shift_range`: the amount is the same for all channels, and what leaves the
    range from the image's own lowest to its highest value is set to the nearer of the two.
    """

    reach: float

    def __post_init__(self) -> None:
        """Refuses a negative reach."""
        require_at_least(self, "reach", 0)

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, H, W)`; for uint8 the amount is rounded, halves up."""
        check_pixels(self, rows)
        amounts = draw.uniform(-self.reach, self.reach).reshape(-1, 1, 1, 1)
        if rows.dtype == np.uint8:
            whole = np.clip(np.floor(amounts + 0.5), -255, 255).astype(np.int16)
            shifted = rows + whole
        else:
            shifted = rows + amounts.astype(np.float32)
        least = rows.min(axis=(1, 2, 3), keepdims=True)
        greatest = rows.max(axis=(1, 2, 3), keepdims=True)
        return np.clip(shifted, least, greatest, out=shifted).astype(rows.dtype, copy=False)


@dataclass(frozen=True)
class Brightness(InputTransform):
    """Multiplies each image by one random factor in [low, high].

    Keras' `brightness_range`, which goes through Pillow's `ImageEnhance.Brightness`: 0 gives
    black, 1 the image. Keras stretches each image to 0..255 first; that is left out here.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuses what is no range of factors."""
        require_range(self, "low", "high", 0)

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, H, W)`; uint8 is rounded, halves up, and ends at 255, float32 nowhere."""
        check_pixels(self, rows)
        factors = draw.uniform(self.low, self.high).astype(np.float32).reshape(-1, 1, 1, 1)
        multiplied: NDArray[np.float32] = np.multiply(rows, factors, dtype=np.float32)
        if rows.dtype != np.uint8:
            return multiplied
        multiplied += np.float32(0.5)
        return np.minimum(multiplied, np.float32(255), out=multiplied).astype(np.uint8)


@dataclass(frozen=True)
class Rescale(InputTransform):
    """`x * scale + offset` in float32, for values of any shape: Keras' `rescale` and an offset.

    As in Keras, it comes after all that works on the raw values; so it is run on inputs that are
    standardised already, unless the run has standardisation turned off, which it is made for.
    """

    scale: float = 1.0
    offset: float = 0.0
    after_scaling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses what is not finite."""
        for argument in ("scale", "offset"):
            require(self, argument, bool(np.isfinite(getattr(self, argument))), "be finite")

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:  # noqa: ARG002
        """float32 `(B, ...)`, for `(B, ...)` of any dtype; nothing is drawn."""
        scaled: NDArray[np.float32] = np.multiply(
            rows, np.float32(self.scale), dtype=np.float32, casting="unsafe"
        )
        scaled += np.float32(self.offset)
        return scaled
