"""Rows of any shards to a batch in one call: copied, scaled, or moved, mirrored and scaled.

The compiled loops are given where each shard's rows begin in the address space, so that a batch
costs one call however many shards its rows lie in. They trust the row numbers: `Dataset` checks
them.
Each gives, bit for bit, what the same steps give one after the other.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray, types  # type: ignore[attr-defined, import-untyped, unused-ignore]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from data_pipeline.compiled import compiled


class Blocks:
    """Arrays `(n, *shape)` of one dtype and shape, one a shard, as one numbered run of rows.

    Attributes:
        arrays: They are kept, since the compiled loops know their addresses alone.
        starts: The number of the first row of each, and behind them that of all rows, int64.
        dtype: That of the rows.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        """All arrays must be contiguous."""
        self.arrays = tuple(arrays)
        sizes = [len(array) for array in arrays]
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        self._addresses = np.array([array.ctypes.data for array in arrays], np.uint64)
        first = arrays[0]
        self.dtype, self._shape = first.dtype, first.shape[1:]
        self._words = _word_like(self.arrays)
        self._like = np.empty(0, first.dtype)
        self._width = math.prod(first.shape[1:])

    def copy(self, rows: NDArray[np.int64], out: NDArray[Any]) -> None:
        """Copies rows to `out` `(B, *shape)`, of the same dtype."""
        self._check(rows, out, self.dtype)
        flat = out.reshape(len(out), self._width).view(self._words.dtype)
        _copy(self._addresses, self.starts, rows, flat, self._words)

    def _check(self, rows: NDArray[np.int64], out: NDArray[Any], dtype: np.dtype[Any]) -> None:
        """The loops write where they are told to: an array of another size would be overrun."""
        wanted = (len(rows), *self._shape)
        if out.shape != wanted or out.dtype != dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"rows of {dtype} go to a contiguous array of shape {wanted}, not to {out.dtype} "
                f"of shape {out.shape}"
            )

    def scale(
        self,
        rows: NDArray[np.int64],
        scale: NDArray[np.float32],
        offset: NDArray[np.float32],
        inner: int,
        out: NDArray[np.float32],
    ) -> None:
        """`float32(x) * scale[k] + offset[k]` to `out`; k counts runs of `inner`, and wraps."""
        self._check(rows, out, np.dtype(np.float32))
        flat = out.reshape(len(out), self._width)
        kernel = _scale_features if inner == 1 else _scale_planes
        kernel(self._addresses, self.starts, rows, scale, offset, inner, flat, self._like)

    def window(
        self,
        rows: NDArray[np.int64],
        down: NDArray[np.int64],
        right: NDArray[np.int64],
        mirrored: NDArray[np.bool_],
        fill: float,
        scale: NDArray[np.float32],
        offset: NDArray[np.float32],
        out: NDArray[np.float32],
    ) -> None:
        """Images `(B, C, H, W)` whose window begins at (down, right), mirrored, and scaled."""
        self._check(rows, out, np.dtype(np.float32))
        places = np.stack([down, right, mirrored])
        _window(self._addresses, self.starts, rows, places, fill, scale, offset, out, self._like)


def _word_like(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """An empty array of the widest words that every row can be copied in."""
    row_bytes = arrays[0].itemsize * math.prod(arrays[0].shape[1:])
    aligned = row_bytes % 8 == 0 and all(array.ctypes.data % 8 == 0 for array in arrays)
    return np.empty(0, np.uint64 if aligned else np.uint8)


@intrinsic  # type: ignore[misc, unused-ignore]
def _pointer(_: Any, address: Any) -> Any:
    """The pointer that a number is, for compiled code."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@compiled
def _array_at(address: int, length: int, dtype: Any) -> Any:
    """The array `(length,)` that lies at an address."""
    return carray(_pointer(address), (length,), dtype=dtype)  # type: ignore[call-arg]


@compiled
def _address(
    addresses: NDArray[np.uint64], starts: NDArray[np.int64], row: int, row_bytes: int
) -> Any:
    """Where a row begins: the last shard that does not begin behind it has it."""
    low, high = 0, len(addresses)
    while high - low > 1:
        middle = (low + high) // 2
        if starts[middle] <= row:
            low = middle
        else:
            high = middle
    return addresses[low] + np.uint64((row - starts[low]) * row_bytes)


@compiled
def _copy(
    addresses: NDArray[np.uint64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    out: NDArray[Any],
    like: NDArray[Any],
) -> None:
    width = out.shape[1]
    for number in range(len(rows)):
        address = _address(addresses, starts, rows[number], width * like.itemsize)
        source, target = _array_at(address, width, like.dtype), out[number]
        for place in range(len(target)):
            target[place] = source[place]


@compiled
def _scale_planes(
    addresses: NDArray[np.uint64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    inner: int,
    out: NDArray[np.float32],
    like: NDArray[Any],
) -> None:
    width = out.shape[1]
    for number in range(len(rows)):
        address = _address(addresses, starts, rows[number], width * like.itemsize)
        row = _array_at(address, width, like.dtype)
        for run in range(width // inner):
            factor, shift = scale[run % len(scale)], offset[run % len(scale)]
            # Views of one axis: the compiler sees that they are contiguous.
            source = row[run * inner : (run + 1) * inner]
            target = out[number, run * inner : (run + 1) * inner]
            for place in range(len(target)):
                target[place] = np.float32(source[place]) * factor + shift


@compiled
def _scale_features(
    addresses: NDArray[np.uint64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    inner: int,  # noqa: ARG001 - 1, as the other loop's
    out: NDArray[np.float32],
    like: NDArray[Any],
) -> None:
    width, period = out.shape[1], len(scale)
    for number in range(len(rows)):
        address = _address(addresses, starts, rows[number], width * like.itemsize)
        row = _array_at(address, width, like.dtype)
        for run in range(width // period):
            source = row[run * period : (run + 1) * period]
            target = out[number, run * period : (run + 1) * period]
            for place in range(len(target)):
                target[place] = np.float32(source[place]) * scale[place] + offset[place]


@compiled
def _window(
    addresses: NDArray[np.uint64],
    starts: NDArray[np.int64],
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    fill: float,
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    out: NDArray[np.float32],
    like: NDArray[Any],
) -> None:
    channels, height, width = out.shape[1:]
    plane = height * width
    for number in range(len(rows)):
        dy, dx, mirrored = places[:, number]
        address = _address(addresses, starts, rows[number], channels * plane * like.itemsize)
        image = _array_at(address, channels * plane, like.dtype)
        left = min(max(0, -dx), width)
        end = max(min(width, width - dx), left)
        for channel in range(channels):
            factor, shift = scale[channel], offset[channel]
            empty = np.float32(fill) * factor + shift
            for y in range(height):
                line = out[number, channel, y]
                if y + dy < 0 or y + dy >= height:
                    line[:] = empty
                    continue
                start = channel * plane + (y + dy) * width
                source = image[start + left + dx : start + end + dx]
                if mirrored:
                    line[: width - end], line[width - left :] = empty, empty
                    target = line[width - end : width - left]
                    # Unsigned, so that the compiler knows of no index that counts from the end.
                    last = np.uint64(len(target) - 1)
                    for x in range(len(target)):
                        target[last - np.uint64(x)] = np.float32(source[x]) * factor + shift
                else:
                    line[:left], line[end:] = empty, empty
                    target = line[left:end]
                    for x in range(len(target)):
                        target[x] = np.float32(source[x]) * factor + shift
