"""The content of a row as 16 bytes: equal inputs have equal keys, wherever they come from."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values

KEY_WORDS = 2
"""A key is two words of 64 bits."""


def content_keys(
    columns: Sequence[Column], rows: Mapping[str, Values], count: int
) -> NDArray[np.uint64]:
    """BLAKE2b of each row's inputs, `(count, 2)`: all columns but the labels.

    Numbers count by their values, not by their type, so that a column which becomes float64
    because of a row that was added keeps the keys of its other rows. For the same reason a picture
    of three equal channels has the key of its one grey channel. Nor does the order of columns
    matter.
    """
    fixed: list[NDArray[np.uint8]] = []
    varying: list[_Varying] = []
    for column in sorted(columns, key=lambda column: column.name):
        values = rows[column.name]
        if isinstance(values, Ragged):
            fixed.append(_bytes_of(values.lengths))
        if column.kind == "number":
            assert not isinstance(values, Ragged)
            fixed.append(_bytes_of(_canonical(values)))
        elif column.kind in ("text", "image"):
            assert isinstance(values, Ragged)
            varying.append(_numbers(values.values, values.offsets))
        else:
            form = _of_sequences(values) if isinstance(values, Ragged) else _of_tensors(values)
            fixed.append(_bytes_of(form.is_narrow))
            varying.append(form)
    fixed.append(np.empty((count, 0), np.uint8))
    joined = np.concatenate(fixed, axis=1)
    buffer, width = np.ascontiguousarray(joined).reshape(-1), joined.shape[1]
    digests = bytearray()
    for number in range(count):
        start = number * width
        digest = hashlib.blake2b(buffer[start : start + width].data, digest_size=16)
        for form in varying:
            digest.update(form.row(number).data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64).reshape(count, KEY_WORDS)


@dataclass(frozen=True)
class _Varying:
    """What is hashed of rows of differing length: bytes, or the bits of numbers where need be.

    Attributes:
        offsets: `(N + 1,)`, where each row begins.
        narrow: The values as bytes.
        wide: The values as words of 64 bits; None where all rows are narrow.
        is_narrow: `(N,)`, the rows whose values are all whole numbers from 0 to 255: they take an
            eighth of the time.
    """

    offsets: NDArray[np.int64]
    narrow: NDArray[np.uint8]
    wide: NDArray[np.uint64] | None
    is_narrow: NDArray[np.bool_]

    def row(self, number: int) -> NDArray[Any]:
        start, stop = int(self.offsets[number]), int(self.offsets[number + 1])
        """What is hashed of a row besides its length."""
        if self.wide is None or self.is_narrow[number]:
            return self.narrow[start:stop]
        return self.wide[start:stop]


def _of_sequences(values: Ragged) -> _Varying:
    return _numbers(values.values.reshape(-1), values.offsets * math.prod(values.step))


def _of_tensors(values: NDArray[Any]) -> _Varying:
    """Tensors `(N, *shape)`; of those `(3, H, W)` with equal channels the first one alone."""
    count, size = len(values), math.prod(values.shape[1:])
    sizes = np.full(count, size, np.int64)
    flat = values.reshape(-1)
    if values.ndim == 4 and values.shape[1] == 3:
        first = values[:, :1]
        same = values == first
        if values.dtype.kind == "f":
            same |= np.isnan(values) & np.isnan(first)
        grey = same.reshape(count, -1).all(axis=1)
        sizes[grey] = size // 3
        if grey.any():
            kept = np.arange(size) < sizes[:, None]
            flat = flat.reshape(count, size)[kept]
    return _numbers(flat, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def _numbers(values: NDArray[Any], offsets: NDArray[np.int64]) -> _Varying:
    flat, rows = np.ascontiguousarray(values), len(offsets) - 1
    if flat.dtype in (np.uint8, np.bool_):
        return _Varying(offsets, flat.view(np.uint8), None, np.ones(rows, np.bool_))
    fits = (flat >= 0) & (flat <= 255)
    if flat.dtype.kind == "f":
        fits &= flat == np.floor(flat)
    others = np.concatenate([[0], np.cumsum(~fits)])[offsets]
    narrow = np.where(fits, flat, 0).astype(np.uint8)
    return _Varying(offsets, narrow, _canonical(flat), np.diff(others) == 0)


def _bytes_of(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return flat.view(np.uint8).reshape(len(values), -1)


def _canonical(values: NDArray[Any]) -> NDArray[Any]:
    """Numbers as the bits of float64; whole ones that it cannot hold as their own bits."""
    numbers = values.astype(np.float64)
    if values.dtype.kind == "f":
        bits = np.where(np.isnan(numbers), np.nan, numbers + 0.0)  # one NaN, and no -0
        return bits.view(np.uint64)
    # 2^53 is the first whole number whose neighbour float64 cannot hold.
    held = (values <= 2**53) & (values >= -(2**53)) if values.dtype.itemsize == 8 else True
    return np.where(held, numbers.view(np.uint64), values.astype(np.uint64))
