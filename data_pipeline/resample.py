"""A box of an image, resampled to a size: bilinear, mirrored or not, normalised or not.

The pixels that a sample lies between are weighted with half-pixel centres, as Pillow and torch
(`align_corners=False`) do, and the box's edge is repeated beyond it: the result is that of cropping
first. There is no antialiasing: where a box is more than twice as large as what is made of it,
pixels are skipped; `data_pipeline.images` decodes such images at a reduced size.

uint8 is resampled in integers, so that the bits are the same on every CPU and with every compiler:

1. two source rows are blended, with 11 bits of weight, into values of 8 + 3 bits;
2. three channels are packed into the three 21-bit fields of one 64-bit word;
3. two neighbouring words are blended, with 10 bits of weight: one multiplication for 3 channels,
   since a sum of 8 + 3 + 10 bits can't reach the next field;
4. each channel is rounded (half up) and written.

A sample is at most 1 level away from the one computed in real numbers and then rounded. The
vertical step comes first: it's contiguous, and LLVM vectorises it; the horizontal one isn't, and is
so done exactly once per sample.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.compiled import compiled
from data_pipeline.errors import DataError

_ROW_BITS = 11
_COLUMN_BITS = 10
_ROW_SHIFT = np.uint32(8)
"""11 bits of weight, less the 3 that are kept."""

_ROW_HALF = np.uint32(128)
_FIELD_BITS = 21
_SUM_BITS = 13
"""3 bits kept and 10 of weight: what a sum is shifted by in the end."""

_COLUMN_ONE = np.uint64(10)
_HALVES = np.uint64(4_096 | 4_096 << 21 | 4_096 << 42)
_LEVELS = np.uint64(255)
_SECOND, _THIRD = np.uint64(_FIELD_BITS), np.uint64(2 * _FIELD_BITS)
_ONE = np.uint64(1)

_Place = tuple[float, float, float, float, bool]
"""A box's top, left, height and width, and whether it is mirrored."""

_Taps = tuple[NDArray[Any], NDArray[Any], NDArray[np.float64]]
"""For each sample its two pixels, and how far behind the first one it lies, from 0 to 1."""

_Scaling = tuple[NDArray[np.float32], NDArray[np.float32]]
"""What each channel is multiplied by, and what is added then."""


class Box(NamedTuple):
    """A part of an image, in pixels; fractions of pixels are allowed."""

    top: float
    left: float
    height: float
    width: float


def resample(
    image: NDArray[np.uint8],
    box: Box,
    out: NDArray[Any],
    *,
    mirrored: bool = False,
    scale: NDArray[np.float32] | None = None,
    offset: NDArray[np.float32] | None = None,
) -> None:
    """Fills `out` `(C, h, w)` with `box` of the picture `image` `(H, W, C)`, of uint8.

    Into uint8 it is rounded; into float32 it is `float32(rounded) * scale[c] + offset[c]`, each
    step rounded to float32, which has the bits of NumPy's own.

    Raises:
        DataError: the box isn't within the image, or the arrays do not go together.
    """
    image = _checked(image, out)
    height, width = image.shape[-2:] if image.ndim == 3 else (len(image), image.shape[1] // 3)
    _check_box(box, height, width)
    top, left, box_height, box_width = map(float, box)
    scaling = None
    if out.dtype == np.float32:
        scaling = (_by_channel(scale, 1.0, len(out)), _by_channel(offset, 0.0, len(out)))
    elif scale is not None or offset is not None:
        raise DataError("scale and offset need an output of float32, but it is of uint8")
    place = (top, left, box_height, box_width, mirrored)
    (_pixels if image.ndim == 2 else _planes)(image, place, scaling, out)


def resample_planes(images: NDArray[Any], boxes: NDArray[np.float64], out: NDArray[Any]) -> None:
    """Fills `out` `(B, C, h, w)` with a box of each of `images` `(B, C, H, W)`, of the same dtype.

    uint8 is rounded, float32 is not. The boxes `(B, 4)` must lie within the images.
    """
    images, rounded = np.ascontiguousarray(images), images.dtype == np.uint8
    for image, box, resampled in zip(images, boxes.tolist(), out, strict=True):
        top, left, height, width = box
        place = (top, left, height, width, False)
        if rounded:
            _planes(image, place, None, resampled)
        else:
            _floats(image, place, resampled)


@compiled
def _pixels(
    image: NDArray[np.uint8], place: _Place, scaling: _Scaling | None, out: NDArray[Any]
) -> None:
    """uint8 `(H, 3 * W)`, the pixels of each row RGB RGB, into `(3, h, w)`."""
    (above, below, down), (near, _, right), start, stop = _grid(
        place, len(image), image.shape[1] // 3, out
    )
    downs, rights = _weights(down, _ROW_BITS), _weights(right, _COLUMN_BITS)
    blended = np.empty(3 * (stop - start), np.uint16)
    packed = np.zeros(stop - start + 1, np.uint64)
    sums = np.empty(out.shape[2], np.uint64)
    for y in range(out.shape[1]):
        upper = image[above[y], 3 * start : 3 * stop]
        lower = image[below[y], 3 * start : 3 * stop]
        _blend_rows(upper, lower, downs[y], blended)
        _pack_pixels(blended, packed)
        _blend_columns(packed, near, rights, sums)
        for channel in range(3):
            _write(sums, channel, scaling, channel, out[channel, y])


@compiled
def _planes(
    image: NDArray[np.uint8], place: _Place, scaling: _Scaling | None, out: NDArray[Any]
) -> None:
    """uint8 `(C, H, W)` into `(C, h, w)`, 3 channels at once where C is a multiple of 3."""
    channels, height, width = image.shape
    (above, below, down), (near, _, right), start, stop = _grid(place, height, width, out)
    downs, rights = _weights(down, _ROW_BITS), _weights(right, _COLUMN_BITS)
    group = 3 if channels % 3 == 0 else 1
    blended = np.empty((group, stop - start), np.uint16)
    packed = np.zeros(stop - start + 1, np.uint64)
    sums = np.empty(out.shape[2], np.uint64)
    for first in range(0, channels, group):
        for y in range(out.shape[1]):
            for number in range(group):
                upper = image[first + number, above[y], start:stop]
                lower = image[first + number, below[y], start:stop]
                _blend_rows(upper, lower, downs[y], blended[number])
            _pack_planes(blended, packed)
            _blend_columns(packed, near, rights, sums)
            for number in range(group):
                _write(sums, number, scaling, first + number, out[first + number, y])


@compiled
def _floats(image: NDArray[np.float32], place: _Place, out: NDArray[np.float32]) -> None:
    """float32 `(C, H, W)` into float32 `(C, h, w)`: `a + (b - a) * weight`, rows first."""
    channels, height, width = image.shape
    (above, below, down), (near, far, right), start, stop = _grid(place, height, width, out)
    downs, rights = down.astype(np.float32), right.astype(np.float32)
    blended = np.empty(stop - start, np.float32)
    for channel in range(channels):
        for y in range(out.shape[1]):
            upper = image[channel, above[y], start:stop]
            lower = image[channel, below[y], start:stop]
            part = downs[y]
            for x in range(len(blended)):
                blended[x] = upper[x] + (lower[x] - upper[x]) * part
            row = out[channel, y]
            for x in range(len(row)):
                value = blended[near[x]]
                row[x] = value + (blended[far[x]] - value) * rights[x]


@compiled
def _grid(
    place: _Place, height: int, width: int, out: NDArray[Any]
) -> tuple[_Taps, _Taps, int, int]:
    """The taps of the rows of `out`, and of its columns, counted from the first that is read.

    That one, and the one behind the last, come last.
    """
    top, left, box_height, box_width, mirrored = place
    rows = _taps(top, box_height, height, out.shape[1], False)
    first, last, right = _taps(left, box_width, width, out.shape[2], mirrored)
    start, stop = min(first[0], first[-1]), max(last[0], last[-1]) + 1
    near, far = (first - start).astype(np.uint64), (last - start).astype(np.uint64)
    return rows, (near, far, right), start, stop


@compiled
def _taps(start: float, length: float, size: int, count: int, mirrored: bool) -> _Taps:
    first, second = np.empty(count, np.int64), np.empty(count, np.int64)
    part = np.empty(count, np.float64)
    end = min(max(start + length - 1.0, start), size - 1.0)
    for i in range(count):
        # 0 is the first pixel's centre; what lies beyond the box or the image is clamped.
        place = start + (i + 0.5) * (length / count) - 0.5
        place = max(min(max(place, start), end), 0.0)
        to = count - 1 - i if mirrored else i
        first[to] = int(np.floor(place))
        second[to] = min(first[to] + 1, size - 1)
        part[to] = place - first[to]
    return first, second, part


@compiled
def _weights(parts: NDArray[np.float64], bits: int) -> NDArray[np.uint64]:
    """The second pixels' weights, of 2^bits."""
    return np.floor(parts * (1 << bits) + 0.5).astype(np.uint64)


@compiled
def _blend_rows(
    upper: NDArray[np.uint8], lower: NDArray[np.uint8], weight: int, out: NDArray[np.uint16]
) -> None:
    more = np.uint32(weight)
    less = np.uint32((1 << _ROW_BITS) - weight)
    for x in range(len(out)):
        total = np.uint32(upper[x]) * less + np.uint32(lower[x]) * more + _ROW_HALF
        out[x] = total >> _ROW_SHIFT


@compiled
def _pack_pixels(blended: NDArray[np.uint16], packed: NDArray[np.uint64]) -> None:
    for x in range(len(blended) // 3):
        low, middle = np.uint64(blended[3 * x]), np.uint64(blended[3 * x + 1]) << _SECOND
        packed[x] = low | middle | (np.uint64(blended[3 * x + 2]) << _THIRD)


@compiled
def _pack_planes(blended: NDArray[np.uint16], packed: NDArray[np.uint64]) -> None:
    if len(blended) == 1:
        for x in range(blended.shape[1]):
            packed[x] = blended[0, x]
        return
    low, middle, high = blended[0], blended[1], blended[2]
    for x in range(len(low)):
        pair = np.uint64(low[x]) | (np.uint64(middle[x]) << _SECOND)
        packed[x] = pair | (np.uint64(high[x]) << _THIRD)


@compiled
def _blend_columns(
    packed: NDArray[np.uint64],
    places: NDArray[np.uint64],
    weights: NDArray[np.uint64],
    sums: NDArray[np.uint64],
) -> None:
    """Of `packed` one word more than there are pixels is read, with a weight of 0.

    A difference may borrow from the next field; modulo 2^64 the sum is right again.
    """
    for x in range(len(sums)):
        value = packed[places[x]]
        change = (packed[places[x] + _ONE] - value) * weights[x]
        sums[x] = (value << _COLUMN_ONE) + change + _HALVES


@compiled
def _write(
    sums: NDArray[np.uint64], field: int, scaling: _Scaling | None, channel: int, out: NDArray[Any]
) -> None:
    """Rounds what stands in a field of the sums, and scales it as its channel is, if any is."""
    places = np.uint64(_SUM_BITS + _FIELD_BITS * field)
    if scaling is None:
        for x in range(len(out)):
            out[x] = (sums[x] >> places) & _LEVELS
    else:
        factor, term = scaling[0][channel], scaling[1][channel]
        for x in range(len(out)):
            out[x] = np.float32(np.int32((sums[x] >> places) & _LEVELS)) * factor + term


def _by_channel(
    values: NDArray[np.float32] | None, default: float, channels: int
) -> NDArray[np.float32]:
    if values is None:
        return np.full(channels, default, dtype=np.float32)
    if values.shape != (channels,) or values.dtype != np.float32:
        raise DataError(
            f"scale and offset must be float32 of shape ({channels},), one number a channel, but "
            f"one is {values.dtype} of shape {values.shape}"
        )
    return values


def _checked(image: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
    """The image as planes `(C, H, W)`, or where its pixels are together as rows `(H, 3 * W)`."""
    if image.ndim != 3 or out.ndim != 3 or 0 in image.shape or 0 in out.shape:
        raise DataError(
            f"image and output must have 3 dimensions and some pixels: {_both(image, out)}"
        )
    if image.dtype != np.uint8 or out.dtype not in (np.uint8, np.float32):
        raise DataError(f"only uint8 is resampled, to uint8 or float32: {_both(image, out)}")
    height, width, channels = image.shape
    if channels != len(out):
        raise DataError(f"image and output differ in their number of channels: {_both(image, out)}")
    if channels == 3:
        return np.ascontiguousarray(image).reshape(height, 3 * width)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _both(image: NDArray[Any], out: NDArray[Any]) -> str:
    return f"the image is {image.dtype} {image.shape}, the output {out.dtype} {out.shape}"


def _check_box(box: Box, height: int, width: int) -> None:
    within = box.top >= 0 and box.left >= 0 and box.height > 0 and box.width > 0
    # What a division has rounded away is clamped: no pixel outside of the image is ever read.
    close = 1e-6
    if not (
        within and box.top + box.height <= height + close and box.left + box.width <= width + close
    ):
        raise DataError(f"{box} does not lie within an image of {height} x {width} pixels")
