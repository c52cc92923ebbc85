"""Arrow IPC shards: written once with their digest, read as memory maps that nothing copies."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.durable import fsync_file
from data_pipeline.errors import DataError, StorageError
from data_pipeline.manifest import Column, Shard, check_column


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type that a column is kept as: a plain number, or a fixed-shape tensor of them."""
    check_column(column)
    value = pa.from_numpy_dtype(np.dtype(column.dtype))
    return pa.fixed_shape_tensor(value, column.shape) if column.shape else value


def write_shard(
    root: Path, path: str, columns: tuple[Column, ...], rows: dict[str, NDArray[np.generic]]
) -> Shard:
    """Writes rows, arrays `(N, *column.shape)`, as one uncompressed record batch in `root/path`.

    One record batch a shard, so that a column is one contiguous block of the file.
    """
    arrays = [_to_arrow(column, rows[column.name]) for column in columns]
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


def check_rows(column: Column, values: NDArray[np.generic]) -> None:
    """Refuses rows that are not as their column says.

    Raises:
        DataError: the dtype or the shape of a row differs.
    """
    check_column(column)
    if values.shape[1:] != column.shape or values.dtype != np.dtype(column.dtype):
        raise DataError(
            f"column {column.name!r} is declared as {column.dtype} of shape {column.shape}, but "
            f"its rows are {values.dtype} of shape {values.shape[1:]}"
        )


def _to_arrow(column: Column, values: NDArray[np.generic]) -> pa.Array:
    check_rows(column, values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if not column.shape:
        return flat
    size = int(np.prod(column.shape))
    storage = pa.FixedSizeListArray.from_arrays(flat, size)
    return pa.ExtensionArray.from_storage(arrow_type(column), storage)


def map_shard(
    root: Path, shard: Shard, columns: tuple[Column, ...]
) -> dict[str, NDArray[np.generic]]:
    """Memory-maps a shard: for each column a read-only view `(rows, *column.shape)` of the file.

    Raises:
        DataError: the file is missing, is no Arrow file, or holds other columns or rows.
    """
    file = root / shard.path
    if not file.is_file():
        raise DataError(f"shard {file} is missing; the manifest lists it")
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(file), "r")).get_batch(0)
        batch.validate()  # lengths and offsets out of a damaged header would end the process
        names = batch.schema.names
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"shard {file} cannot be read as Arrow IPC: {error}") from error
    if batch.num_rows != shard.rows:
        raise DataError(f"shard {file} has {batch.num_rows} rows, the manifest says {shard.rows}")
    for column in columns:
        if names.count(column.name) != 1:
            raise DataError(f"shard {file} has the columns {names}, but not one {column.name!r}")
    return {column.name: _view(file, batch, column) for column in columns}


def _view(file: Path, batch: pa.RecordBatch, column: Column) -> NDArray[np.generic]:
    array = batch.column(column.name)
    if array.type != arrow_type(column) or array.null_count:
        raise DataError(
            f"shard {file}: column {column.name!r} is {array.type} with {array.null_count} nulls, "
            f"the manifest says {arrow_type(column)} without nulls"
        )
    values = array.storage.flatten() if column.shape else array
    if values.null_count or len(values) != batch.num_rows * math.prod(column.shape):
        raise DataError(f"shard {file}: column {column.name!r} lacks values")
    view: NDArray[np.generic] = values.to_numpy(zero_copy_only=True)
    return view.reshape(batch.num_rows, *column.shape)


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
