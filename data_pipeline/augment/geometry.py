"""Rotation, shift, shear and zoom of images by one interpolation, as Keras composes them."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import (
    check_pixels,
    require,
    require_at_least,
    require_positive,
    require_range,
)
from data_pipeline.augment.border import FILL_MODES, check_fill_mode
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import InputTransform, check_fill
from data_pipeline.compiled import compiled


@dataclass(frozen=True)
class Geometry(InputTransform):
    """Rotates, shifts, shears and zooms each image about its centre, and interpolates once.

    The arguments are those of Keras' ImageDataGenerator, and so are their meaning, their order
    (the pixel at p of the result is read at R T S Z p, with p counted from the centre) and the
    signs. Each is drawn uniformly for each image:

    - `rotation`: in [-rotation, rotation] degrees.
    - `height_shift`, `width_shift`: in [-shift, shift], as a fraction of the height or width;
      `Shift` moves by whole pixels.
    - `shear`: in [-shear, shear] degrees; Keras' matrix [[1, -sin], [0, cos]].
    - `zoom`: from the first to the second, for height and width apart; what is read is so many
      times as large, so that 0.5 shows half of the image twice as large.

    Interpolation is bilinear; `border.FILL_MODES` says what is seen beyond the edges.
    """

    rotation: float = 0.0
    height_shift: float = 0.0
    width_shift: float = 0.0
    shear: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    fill_mode: str = "nearest"
    fill: float = 0.0

    def __post_init__(self) -> None:
        """Refuses negative ranges, a zoom that is no range above 0, and an unknown fill mode."""
        for argument in ("rotation", "height_shift", "width_shift", "shear"):
            require_at_least(self, argument, 0)
        require(
            self,
            "zoom",
            len(self.zoom) == 2 and 0 < self.zoom[0] <= self.zoom[1] < math.inf,
            "be two numbers above 0, the first not above the second",
        )
        check_fill_mode(self)

    def maps(self, height: int, width: int, draw: Draw) -> NDArray[np.float64]:
        """Where each pixel is read: `(B, 2, 3)`, row and column from (row, column, 1)."""
        reach = np.array([self.rotation, self.height_shift, self.width_shift, self.shear])
        numbers = draw.uniform(0.0, 1.0, 6)
        parameters = np.empty_like(numbers)
        parameters[:, :4] = (2.0 * numbers[:, :4] - 1.0) * reach
        parameters[:, 1:3] *= height, width
        parameters[:, 4:] = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * numbers[:, 4:]
        found = np.empty((len(numbers), 2, 3))
        _compose(parameters, height, width, found)
        return found

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, H, W)`; uint8 is rounded, halves up, float32 is not."""
        return self._warped(self, rows, draw)

    def _warped(self, asked: InputTransform, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        check_pixels(asked, rows)
        if self.fill_mode == "constant":
            check_fill(type(asked).__name__, self.fill, rows.dtype)
        out = np.empty(rows.shape, rows.dtype)
        half = 0.5 if rows.dtype == np.uint8 else 0.0
        height, width = rows.shape[2:]
        maps = self.maps(height, width, draw)
        _warp(
            np.ascontiguousarray(rows), maps, FILL_MODES.index(self.fill_mode), self.fill, half, out
        )
        return out


class _OneOfGeometry(InputTransform):
    """What is `Geometry` with one of its arguments, under a name of its own."""

    @abstractmethod
    def geometry(self) -> Geometry:
        """The same as a `Geometry`; equal draws give equal images."""

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """Images `(B, C, H, W)`; uint8 is rounded, halves up, float32 is not."""
        return self.geometry()._warped(self, rows, draw)


@dataclass(frozen=True)
class _ByAngle(_OneOfGeometry):
    """By an angle in [-degrees, degrees]."""

    degrees: float
    fill_mode: str = "nearest"
    fill: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a negative angle and an unknown fill mode."""
        require_at_least(self, "degrees", 0)
        check_fill_mode(self)


@dataclass(frozen=True)
class Rotation(_ByAngle):
    """Rotates each image by an angle in [-degrees, degrees]: Keras' `rotation_range`."""

    def geometry(self) -> Geometry:
        """The same as a `Geometry`."""
        return Geometry(rotation=self.degrees, fill_mode=self.fill_mode, fill=self.fill)


@dataclass(frozen=True)
class Translate(_OneOfGeometry):
    """Moves each image by up to a fraction of its height and of its width, between pixels too.

    Keras' `height_shift_range` and `width_shift_range` below 1; `Shift` moves by whole pixels.
    """

    height: float = 0.0
    width: float = 0.0
    fill_mode: str = "nearest"
    fill: float = 0.0

    def __post_init__(self) -> None:
        """Refuses a negative reach and an unknown fill mode."""
        require_at_least(self, "height", 0)
        require_at_least(self, "width", 0)
        check_fill_mode(self)

    def geometry(self) -> Geometry:
        """The same as a `Geometry`."""
        return Geometry(
            height_shift=self.height,
            width_shift=self.width,
            fill_mode=self.fill_mode,
            fill=self.fill,
        )


@dataclass(frozen=True)
class Shear(_ByAngle):
    """Shears each image by an angle in [-degrees, degrees]: Keras' `shear_range`."""

    def geometry(self) -> Geometry:
        """The same as a `Geometry`."""
        return Geometry(shear=self.degrees, fill_mode=self.fill_mode, fill=self.fill)


@dataclass(frozen=True)
class Zoom(_OneOfGeometry):
    """Zooms each image, height and width apart: Keras' `zoom_range=[low, high]`.

    What is shown is `low` to `high` times as high and wide as the image: below 1 it looks larger.
    """

    low: float
    high: float
    fill_mode: str = "nearest"
    fill: float = 0.0

    def __post_init__(self) -> None:
        """Refuses what is no range above 0, and an unknown fill mode."""
        require_positive(self, "low")
        require_range(self, "low", "high", 0)
        check_fill_mode(self)

    def geometry(self) -> Geometry:
        """The same as a `Geometry`."""
        return Geometry(zoom=(self.low, self.high), fill_mode=self.fill_mode, fill=self.fill)


@compiled
def _compose(
    parameters: NDArray[np.float64], height: int, width: int, out: NDArray[np.float64]
) -> None:
    """R T S Z about the centre, for parameters `(B, 6)`: angle, shifts, shear, zooms."""
    middle_row, middle_column = 0.5 * height - 0.5, 0.5 * width - 0.5
    for sample in range(len(parameters)):
        turn, down, right, shear, tall, wide = parameters[sample]
        turn, shear = math.radians(turn), math.radians(shear)
        cos, sin = math.cos(turn), math.sin(turn)
        # [[cos, -sin], [sin, cos]] [[1, -sin s], [0, cos s]] [[tall, 0], [0, wide]]
        linear = (
            (cos * tall, -math.sin(turn + shear) * wide),
            (sin * tall, math.cos(turn + shear) * wide),
        )
        shifts = (cos * down - sin * right, sin * down + cos * right)
        middles = (middle_row, middle_column)
        for axis in range(2):
            along_rows, along_columns = linear[axis]
            out[sample, axis, 0] = along_rows
            out[sample, axis, 1] = along_columns
            out[sample, axis, 2] = (
                shifts[axis]
                + middles[axis]
                - (along_rows * middle_row + along_columns * middle_column)
            )


@compiled
def _place_in_row(place: Any, size: Any, mode: Any) -> Any:
    """Which pixel of a row of `size` stands at `place`, or -1 for the fill.

    `mode` is the number of the mode in `FILL_MODES`.
    """
    if 0 <= place < size:
        return place
    if mode == 0:
        return -1
    if mode == 1:
        return 0 if place < 0 else size - 1
    if mode == 2:
        place = place % (2 * size)
        return place if place < size else 2 * size - 1 - place
    return place % size


@compiled
def _value(image: NDArray[Any], channel: int, row: int, column: int, fill: float) -> Any:
    """A pixel; -1 stands for the fill."""
    if row < 0 or column < 0:
        return fill
    return np.float64(image[channel, row, column])


@compiled
def _warp(
    rows: NDArray[Any],
    maps: NDArray[np.float64],
    mode: int,
    fill: float,
    half: float,
    out: NDArray[Any],
) -> None:
    """Reads images `(B, C, H, W)` at the mapped places; `half` is added before the cast."""
    count, channels, height, width = rows.shape
    for sample in range(count):
        image = rows[sample]
        a, b, c = maps[sample, 0]
        d, e, f = maps[sample, 1]
        for y in range(height):
            for x in range(width):
                down, right = a * y + b * x + c, d * y + e * x + f
                top, left = math.floor(down), math.floor(right)
                low, far = down - top, right - left
                r0 = _place_in_row(top, height, mode)
                r1 = _place_in_row(top + 1, height, mode)
                c0 = _place_in_row(left, width, mode)
                c1 = _place_in_row(left + 1, width, mode)
                for k in range(channels):
                    upper = _value(image, k, r0, c0, fill) * (1.0 - far)
                    upper += _value(image, k, r0, c1, fill) * far
                    lower = _value(image, k, r1, c0, fill) * (1.0 - far)
                    lower += _value(image, k, r1, c1, fill) * far
                    out[sample, k, y, x] = upper * (1.0 - low) + lower * low + half
