"""The content of a row as 16 bytes: equal inputs have equal keys, wherever they come from."""

import hashlib
from collections.abc import Mapping, Sequence
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

    A number counts by its value, not by its type, so that a column that becomes float64 because of
    a row that was added keeps the keys of its other rows. Nor does the order of columns matter.
    """
    fixed: list[NDArray[np.uint8]] = []
    ragged: list[Ragged] = []
    for column in sorted(columns, key=lambda column: column.name):
        values = rows[column.name]
        if isinstance(values, Ragged):
            ragged.append(values)
            fixed.append(_bytes_of(values.lengths))
        else:
            fixed.append(_bytes_of(_canonical(values) if column.kind == "number" else values))
    joined = np.concatenate(fixed, axis=1)
    buffer, width = np.ascontiguousarray(joined).reshape(-1).data, joined.shape[1]
    digests = bytearray()
    for number in range(count):
        digest = hashlib.blake2b(buffer[number * width : (number + 1) * width], digest_size=16)
        for values in ragged:
            digest.update(np.ascontiguousarray(values.row(number)).data)
        digests += digest.digest()
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64).reshape(count, KEY_WORDS)


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
