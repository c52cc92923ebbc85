"""Arrow IPC shards: written once with their digest, read as memory maps that nothing copies."""

import hashlib
import math
import mmap
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.durable import fsync_file
from data_pipeline.errors import DataError, StorageError
from data_pipeline.manifest import Column, Shard, check_column
from data_pipeline.ragged import Ragged

SHARD_BYTES = 64 * 2**20
"""A shard holds about this much unless the rows of a shard are given."""

_OTHER_FILES = 256
"""How many a process may open besides shards."""

Values = NDArray[Any] | Ragged
"""A column of some rows: an array `(N, *shape)`, or rows of differing length."""


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type that a column is kept as.

    A plain number; a fixed-shape tensor; a list of numbers or of such tensors, bytes or a string,
    each with offsets of 64 bits.
    """
    check_column(column)
    if column.kind == "image":
        return pa.large_binary()
    if column.kind == "text":
        return pa.large_string()
    value = pa.from_numpy_dtype(np.dtype(column.dtype))
    if column.kind == "sequence":
        return pa.large_list(pa.list_(value, math.prod(column.shape)) if column.shape else value)
    return pa.fixed_shape_tensor(value, column.shape) if column.shape else value


def write_shard(
    root: Path, path: str, columns: tuple[Column, ...], rows: Mapping[str, Values]
) -> Shard:
    """Writes rows, a column each, as one uncompressed record batch in `root/path`.

    One record batch a shard, so that a column is one contiguous block of the file.
    """
    arrays = [to_arrow(column, rows[column.name]) for column in columns]
    schema = pa.schema(
        [pa.field(column.name, arrow_type(column), nullable=False) for column in columns]
    )
    file = root / path
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=schema))
        fsync_file(file)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from error
    return Shard(
        path=path,
        rows=len(arrays[0]),
        size_bytes=file.stat().st_size,
        sha256=file_sha256(file),
    )


def check_rows(column: Column, values: Values) -> None:
    """Refuses rows that are not as their column says.

    Raises:
        DataError: the dtype or the shape of a row (of a step, for ragged rows) differs.
    """
    check_column(column)
    if isinstance(values, Ragged) != column.is_ragged:
        raise DataError(
            f"column {column.name!r} is declared as {column.kind}, but its rows are "
            f"{'' if isinstance(values, Ragged) else 'not '}of differing length"
        )
    array = values.values if isinstance(values, Ragged) else values
    shape = () if column.kind == "image" else column.shape
    if array.shape[1:] != shape or array.dtype != np.dtype(column.dtype):
        raise DataError(
            f"column {column.name!r} is declared as {column.dtype} of shape {shape}, but "
            f"its rows are {array.dtype} of shape {array.shape[1:]}"
        )


def to_arrow(column: Column, values: Values) -> pa.Array:
    """A column of some rows as Arrow keeps it.

    Raises:
        DataError: the rows are not as their column says.
    """
    check_rows(column, values)
    if isinstance(values, Ragged):
        return _ragged_to_arrow(column, values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if not column.shape:
        return flat
    storage = pa.FixedSizeListArray.from_arrays(flat, math.prod(column.shape))
    return pa.ExtensionArray.from_storage(arrow_type(column), storage)


def _ragged_to_arrow(column: Column, values: Ragged) -> pa.Array:
    offsets = np.ascontiguousarray(values.offsets)
    flat = np.ascontiguousarray(values.values).reshape(-1)
    if column.kind == "sequence":
        items = pa.array(flat)
        if column.shape:
            items = pa.FixedSizeListArray.from_arrays(items, math.prod(column.shape))
        return pa.LargeListArray.from_arrays(pa.array(offsets), items)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
    array = pa.Array.from_buffers(arrow_type(column), len(values), buffers)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column {column.name!r} holds what is no text in UTF-8: {error}"
        ) from error
    return array


@dataclass(frozen=True)
class MappedShard:
    """A shard in the address space: by column a read-only view of the file.

    Attributes:
        columns: `(rows, *shape)` for fixed shapes, `Ragged` for the others.
    """

    columns: dict[str, Values]
    _map: mmap.mmap

    def give_back(self) -> None:
        """Lets the system have the pages that were read; the next read faults them in again.

        They stay in the file cache while there is room; what falls is this process's own share.
        """
        self._map.madvise(mmap.MADV_DONTNEED)


def allow_open_files(more: int) -> None:
    """Raises this process's limit on open files, where a data set of so many shards needs it.

    A map holds its file open. The usual limit of 1,024 is a soft one, which a process may raise.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = sum(1 for _ in Path("/proc/self/fd").iterdir()) + more + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and wanted > soft:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def map_shard(root: Path, shard: Shard, columns: tuple[Column, ...]) -> MappedShard:
    """Memory-maps a shard; nothing is read yet but its ends.

    Raises:
        DataError: the file is missing, is no Arrow file, or holds other columns or rows.
    """
    file = root / shard.path
    if not file.is_file():
        raise DataError(f"shard {file} is missing; the manifest lists it")
    try:
        with file.open("rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ)
        batch = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).get_batch(0)
        batch.validate()  # lengths and offsets out of a damaged header would end the process
        names = batch.schema.names
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"shard {file} cannot be read as Arrow IPC: {error}") from error
    if batch.num_rows != shard.rows:
        raise DataError(f"shard {file} has {batch.num_rows} rows, the manifest says {shard.rows}")
    for column in columns:
        if names.count(column.name) != 1:
            raise DataError(f"shard {file} has the columns {names}, but not one {column.name!r}")
    return MappedShard({column.name: view_of(file, batch, column) for column in columns}, mapped)


def view_of(file: Path, batch: pa.RecordBatch, column: Column) -> Values:
    """A column of a record batch, without a copy.

    Raises:
        DataError: it is of another type, or lacks values; the message names the file.
    """
    array = batch.column(column.name)
    if array.type != arrow_type(column) or array.null_count:
        raise DataError(
            f"shard {file}: column {column.name!r} is {array.type} with {array.null_count} nulls, "
            f"the manifest says {arrow_type(column)} without nulls"
        )
    if column.is_ragged:
        return _ragged_view(file, array, column)
    values = array.storage.flatten() if column.shape else array
    if values.null_count or len(values) != batch.num_rows * math.prod(column.shape):
        raise DataError(f"shard {file}: column {column.name!r} lacks values")
    view: NDArray[Any] = values.to_numpy(zero_copy_only=True)
    return view.reshape(batch.num_rows, *column.shape)


def _ragged_view(file: Path, array: pa.Array, column: Column) -> Ragged:
    offsets = np.frombuffer(array.buffers()[1], np.int64, len(array) + 1)
    if column.kind != "sequence":
        data = array.buffers()[2]
        content = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        return Ragged(offsets, content)
    items = array.values
    flat = items.flatten() if column.shape else items
    if items.null_count or flat.null_count or len(flat) != len(items) * math.prod(column.shape):
        raise DataError(f"shard {file}: column {column.name!r} lacks values")
    view: NDArray[Any] = flat.to_numpy(zero_copy_only=True)
    return Ragged(offsets, view.reshape(len(items), *column.shape))


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def verify_shard(root: Path, shard: Shard) -> None:
    """Reads a shard and compares its size and SHA-256 with the manifest's.

    Raises:
        DataError: it is missing or differs; the message names the file and both digests.
    """
    file = root / shard.path
    if not file.is_file():
        raise DataError(f"shard {file} is missing; the manifest lists it")
    size = file.stat().st_size
    if size != shard.size_bytes:
        raise DataError(
            f"shard {file} has {size:,} bytes, the manifest says {shard.size_bytes:,}: "
            "it was cut or changed; write the data set anew or restore the file"
        )
    found = file_sha256(file)
    if found != shard.sha256:
        raise DataError(
            f"shard {file} is damaged: its SHA-256 is {found[:16]}..., the manifest says "
            f"{shard.sha256[:16]}...; write the data set anew or restore the file"
        )
