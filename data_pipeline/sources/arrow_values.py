"""Arrays of Arrow as values of a column; they hold no nulls at the top, numbers excepted."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged


class Unfit(ValueError):  # noqa: N818 - it is worded by whom it reaches
    """The values are not what their column says."""


def number_values(array: pa.Array, dtype: str) -> NDArray[Any]:
    """`(N,)`; nulls become NaN."""
    if pa.types.is_boolean(array.type):
        array = pc.cast(array, pa.uint8())
    values: NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values.astype(dtype, copy=False)


def text_values(array: pa.Array) -> Ragged:
    """UTF-8."""
    array = pc.cast(array, pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset :][: len(array) + 1]
    data = array.buffers()[2]
    content = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
    if not len(offsets):
        return Ragged(np.zeros(1, np.int64), content[:0])
    start, stop = int(offsets[0]), int(offsets[-1])
    return Ragged(offsets - start, content[start:stop])


def tensor_values(array: pa.Array, column: Column) -> NDArray[Any]:
    """`(N, *shape)`.

    Raises:
        Unfit: an element is missing.
    """
    if isinstance(array.type, pa.FixedShapeTensorType):
        if array.storage.flatten().null_count:
            raise Unfit("an element within a tensor is missing")
        return np.ascontiguousarray(array.to_numpy_ndarray()).astype(column.dtype, copy=False)
    values = _flat(array, column.dtype)
    return values.reshape(len(array), *column.shape)


def sequence_values(array: pa.Array, column: Column) -> Ragged:
    """Steps of `shape`, one sequence behind the other.

    Raises:
        Unfit: an element is missing.
    """
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64)
    values = _flat(array.flatten(), column.dtype)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if len(values) != int(offsets[-1]) * math.prod(column.shape):
        raise Unfit("an element within a list is missing")
    return Ragged(offsets, values.reshape(int(offsets[-1]), *column.shape))


def _flat(array: pa.Array, dtype: str) -> NDArray[Any]:
    """The numbers within (nested) fixed-size lists."""
    while isinstance(array.type, pa.FixedShapeTensorType) or pa.types.is_fixed_size_list(
        array.type
    ):
        if array.null_count:
            raise Unfit("an element within a list is missing")
        storage = array.storage if isinstance(array.type, pa.FixedShapeTensorType) else array
        array = storage.flatten()
    if array.null_count:
        raise Unfit("an element within a list is missing")
    return number_values(array, dtype)
