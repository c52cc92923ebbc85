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

_KINDS = (np.dtype(np.uint8).char, np.dtype(np.float32).char)


class Box(NamedTuple):
    """A part of an image, in pixels; fractions of pixels are allowed."""

    top: float
    left: float
    height: float
    width: float


def resample(
    image: NDArray[Any],
    box: Box,
    out: NDArray[Any],
    *,
    mirrored: bool = False,
    scale: NDArray[np.float32] | None = None,
    offset: NDArray[np.float32] | None = None,
    channels_last: bool = True,
) -> None:
    """Fills `out` `(C, H, W)` with `box` of `image`, whose C channels come last or first.

    uint8 into uint8 is rounded; into float32 it is `float32(rounded) * scale[c] + offset[c]`, each
    step rounded to float32, which has the bits of NumPy's own. float32 goes into float32 and is
    neither rounded nor scaled.

    Raises:
        DataError: the box isn't within the image, or the arrays do not go together.
    """
    image = _checked(image, out, channels_last)
    height, width = image.shape[-2:] if image.ndim == 3 else (len(image), image.shape[1] // 3)
    _check_box(box, height, width)
    top, left, box_height, box_width = map(float, box)
    place = (top, left, box_height, box_width, mirrored)
    if image.dtype.char == _KINDS[1]:
        if out.dtype.char != _KINDS[1] or scale is not None or offset is not None:
            raise DataError("images of float32 are resampled to float32, without scale and offset")
        floats_to_floats(image, *place, out)
    elif out.dtype.char == _KINDS[0]:
        if scale is not None or offset is not None:
            raise DataError("scale and offset need an output of float32, but it is of uint8")
        (pixels_to_bytes if image.ndim == 2 else planes_to_bytes)(image, *place, out)
    else:
        channels = len(out)
        scale = _by_channel(scale, 1.0, channels)
        offset = _by_channel(offset, 0.0, channels)
        kernel = pixels_to_floats if image.ndim == 2 else planes_to_floats
        kernel(image, *place, scale, offset, out)


@compiled
def pixels_to_bytes(
    image: NDArray[np.uint8],
    top: float,
    left: float,
    height: float,
    width: float,
    mirrored: bool,
    out: NDArray[np.uint8],
) -> None:
    """uint8 `(H, 3 * W)`, the pixels of each row RGB RGB, into uint8 `(3, h, w)`."""
    size = image.shape[1] // 3
    above, below, row_weight = _taps(top, height, len(image), out.shape[1], _ROW_BITS, False)
    first, last, weight = _taps(left, width, size, out.shape[2], _COLUMN_BITS, mirrored)
    start, stop = min(first[0], first[-1]), max(last[0], last[-1]) + 1
    places, weights = (first - start).astype(np.uint64), weight.astype(np.uint64)
    blended = np.empty(3 * (stop - start), np.uint16)
    packed = np.zeros(stop - start + 1, np.uint64)
    sums = np.empty(out.shape[2], np.uint64)
    for y in range(out.shape[1]):
        upper = image[above[y], 3 * start : 3 * stop]
        _blend_rows(upper, image[below[y], 3 * start : 3 * stop], row_weight[y], blended)
        _pack_pixels(blended, packed)
        _blend_columns(packed, places, weights, sums)
        for channel in range(3):
            _write_bytes(sums, _SUM_BITS + _FIELD_BITS * channel, out[channel, y])


@compiled
def pixels_to_floats(
    image: NDArray[np.uint8],
    top: float,
    left: float,
    height: float,
    width: float,
    mirrored: bool,
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """uint8 `(H, 3 * W)`, the pixels of each row RGB RGB, into float32 `(3, h, w)`."""
    size = image.shape[1] // 3
    above, below, row_weight = _taps(top, height, len(image), out.shape[1], _ROW_BITS, False)
    first, last, weight = _taps(left, width, size, out.shape[2], _COLUMN_BITS, mirrored)
    start, stop = min(first[0], first[-1]), max(last[0], last[-1]) + 1
    places, weights = (first - start).astype(np.uint64), weight.astype(np.uint64)
    blended = np.empty(3 * (stop - start), np.uint16)
    packed = np.zeros(stop - start + 1, np.uint64)
    sums = np.empty(out.shape[2], np.uint64)
    for y in range(out.shape[1]):
        upper = image[above[y], 3 * start : 3 * stop]
        _blend_rows(upper, image[below[y], 3 * start : 3 * stop], row_weight[y], blended)
        _pack_pixels(blended, packed)
        _blend_columns(packed, places, weights, sums)
        for channel in range(3):
            shift = _SUM_BITS + _FIELD_BITS * channel
            _write_floats(sums, shift, scale[channel], offset[channel], out[channel, y])


@compiled
def planes_to_bytes(
    image: NDArray[np.uint8],
    top: float,
    left: float,
    height: float,
    width: float,
    mirrored: bool,
    out: NDArray[np.uint8],
) -> None:
    """uint8 `(C, H, W)` into uint8 `(C, h, w)`, 3 channels at once where C is a multiple of 3."""
    channels, num_rows, size = image.shape
    above, below, row_weight = _taps(top, height, num_rows, out.shape[1], _ROW_BITS, False)
    first, last, weight = _taps(left, width, size, out.shape[2], _COLUMN_BITS, mirrored)
    start, stop = min(first[0], first[-1]), max(last[0], last[-1]) + 1
    places, weights = (first - start).astype(np.uint64), weight.astype(np.uint64)
    group = 3 if channels % 3 == 0 else 1
    blended = np.empty((group, stop - start), np.uint16)
    packed = np.zeros(stop - start + 1, np.uint64)
    sums = np.empty(out.shape[2], np.uint64)
    for base in range(0, channels, group):
        for y in range(out.shape[1]):
            for channel in range(group):
                plane = image[base + channel]
                upper, lower = plane[above[y], start:stop], plane[below[y], start:stop]
                _blend_rows(upper, lower, row_weight[y], blended[channel])
            _pack_planes(blended, packed)
            _blend_columns(packed, places, weights, sums)
            for channel in range(group):
                _write_bytes(sums, _SUM_BITS + _FIELD_BITS * channel, out[base + channel, y])


@compiled
def planes_to_floats(
    image: NDArray[np.uint8],
    top: float,
    left: float,
    height: float,
    width: float,
    mirrored: bool,
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """uint8 `(C, H, W)` into float32 `(C, h, w)`: as bytes, then scaled."""
    levels = np.empty(out.shape, np.uint8)
    planes_to_bytes(image, top, left, height, width, mirrored, levels)
    for channel in range(len(out)):
        factor, term = scale[channel], offset[channel]
        for y in range(out.shape[1]):
            source, row = levels[channel, y], out[channel, y]
            for x in range(len(row)):
                row[x] = np.float32(source[x]) * factor + term


@compiled
def floats_to_floats(
    image: NDArray[np.float32],
    top: float,
    left: float,
    height: float,
    width: float,
    mirrored: bool,
    out: NDArray[np.float32],
) -> None:
    """float32 `(C, H, W)` into float32 `(C, h, w)`: `a + (b - a) * weight`, rows first."""
    channels, num_rows, size = image.shape
    above, below, row_weight = _float_taps(top, height, num_rows, out.shape[1], False)
    first, last, weight = _float_taps(left, width, size, out.shape[2], mirrored)
    start, stop = min(first[0], first[-1]), max(last[0], last[-1]) + 1
    near, far = (first - start).astype(np.uint64), (last - start).astype(np.uint64)
    blended = np.empty(stop - start, np.float32)
    for channel in range(channels):
        for y in range(out.shape[1]):
            upper = image[channel, above[y], start:stop]
            lower = image[channel, below[y], start:stop]
            part = row_weight[y]
            for x in range(len(blended)):
                blended[x] = upper[x] + (lower[x] - upper[x]) * part
            row = out[channel, y]
            for x in range(len(row)):
                value = blended[near[x]]
                row[x] = value + (blended[far[x]] - value) * weight[x]


@compiled
def _positions(start: float, length: float, size: int, count: int) -> NDArray[np.float64]:
    """Where the samples lie, 0 being the first pixel's centre, clamped to the box and the image."""
    last = min(max(start + length - 1.0, start), size - 1.0)
    positions = np.empty(count, np.float64)
    for i in range(count):
        place = start + (i + 0.5) * (length / count) - 0.5
        positions[i] = max(min(max(place, start), last), 0.0)
    return positions


@compiled
def _taps(
    start: float, length: float, size: int, count: int, bits: int, mirrored: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each sample its two pixels, and the second one's weight of 2^bits."""
    positions = _positions(start, length, size, count)
    first, second = np.empty(count, np.int64), np.empty(count, np.int64)
    weight = np.empty(count, np.int64)
    for i in range(count):
        to = count - 1 - i if mirrored else i
        whole = np.floor(positions[i])
        first[to] = int(whole)
        second[to] = min(first[to] + 1, size - 1)
        weight[to] = int(np.floor((positions[i] - whole) * (1 << bits) + 0.5))
    return first, second, weight


@compiled
def _float_taps(
    start: float, length: float, size: int, count: int, mirrored: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each sample its two pixels, and the second one's weight of 1."""
    positions = _positions(start, length, size, count)
    first, second = np.empty(count, np.int64), np.empty(count, np.int64)
    weight = np.empty(count, np.float32)
    for i in range(count):
        to = count - 1 - i if mirrored else i
        whole = np.floor(positions[i])
        first[to] = int(whole)
        second[to] = min(first[to] + 1, size - 1)
        weight[to] = np.float32(positions[i] - whole)
    return first, second, weight


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
def _write_bytes(sums: NDArray[np.uint64], shift: int, out: NDArray[np.uint8]) -> None:
    places = np.uint64(shift)
    for x in range(len(out)):
        out[x] = (sums[x] >> places) & _LEVELS


@compiled
def _write_floats(
    sums: NDArray[np.uint64],
    shift: int,
    scale: np.float32,
    offset: np.float32,
    out: NDArray[np.float32],
) -> None:
    places = np.uint64(shift)
    for x in range(len(out)):
        out[x] = np.float32(np.int32((sums[x] >> places) & _LEVELS)) * scale + offset


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


def _checked(image: NDArray[Any], out: NDArray[Any], channels_last: bool) -> NDArray[Any]:
    """The image as planes `(C, H, W)`, or where its pixels are together as rows `(H, 3 * W)`."""
    shape = image.shape
    if image.ndim != 3 or out.ndim != 3 or 0 in shape or 0 in out.shape:
        raise DataError(
            f"image and output must have 3 dimensions and some pixels: {_both(image, out)}"
        )
    if image.dtype.char not in _KINDS or out.dtype.char not in _KINDS:
        raise DataError(f"only uint8 and float32 can be resampled: {_both(image, out)}")
    if (shape[2] if channels_last else shape[0]) != len(out):
        raise DataError(f"image and output differ in their number of channels: {_both(image, out)}")
    if not image.flags.c_contiguous:
        image = np.ascontiguousarray(image)
    if not channels_last:
        return image
    if shape[2] == 1:
        return image.reshape(1, *shape[:2])
    if image.dtype.char == _KINDS[0] and shape[2] == 3:
        return image.reshape(shape[0], 3 * shape[1])
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
