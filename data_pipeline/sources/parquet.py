"""Parquet, a file or a folder of them, read in a stream."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import DataError
from data_pipeline.sources.checks import BLOCK_BYTES, PIECE_BYTES
from data_pipeline.sources.source import Block, Piece, Reading
from data_pipeline.sources.table_files import (
    Numbered,
    check_alike,
    matches_suffix,
    table_files,
    whole_batches,
)
from data_pipeline.sources.tables import Tables, layout_of

SUFFIXES = (".parquet", ".pq")


def matches(path: Path) -> bool:
    """Whether it is called .parquet or .pq, or is a folder of such files."""
    return matches_suffix(path, SUFFIXES) or (
        path.is_dir() and any(path.glob("*/*.parquet")) and not any(path.glob("*/*.arrow"))
    )


def open_source(path: Path, reading: Reading) -> "ParquetFiles":
    """The source; of the files their ends are read.

    Raises:
        DataError: there is nothing to read, a file is damaged, or a column cannot be kept.
    """
    files = table_files(path, SUFFIXES)
    pieces: list[Piece] = []
    first_rows: list[int] = []
    schema: pa.Schema | None = None
    for file, part, shown in files:
        with _opened(file) as reader:
            found = reader.schema_arrow
            if schema is None:
                schema = found
            check_alike(files[0].path, schema, file, found)
            for start, stop, row in _groups(reader.metadata):
                name = f"{shown} row groups {start} to {stop - 1}"
                pieces.append(Piece(name, (file,), part, start, stop))
                first_rows.append(row)
    assert schema is not None
    layout = layout_of(path, schema, reading)
    return ParquetFiles(tuple(pieces), layout, tuple(first_rows))


@dataclass(frozen=True)
class ParquetFiles(Tables):
    """Pieces are runs of row groups."""

    first_rows: tuple[int, ...]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece, counted from 0 in their file.

        Raises:
            DataError: the file is damaged.
        """
        file = piece.files[0]
        row = self.first_rows[self.pieces.index(piece)]
        with _opened(file) as reader:
            groups = range(piece.start, piece.stop)
            size = sum(reader.metadata.row_group(group).total_byte_size for group in groups)
            num_rows = sum(reader.metadata.row_group(group).num_rows for group in groups)
            batch_size = int(min(max(1, BLOCK_BYTES * num_rows // max(size, 1)), 2**20))
            batches = reader.iter_batches(
                batch_size, row_groups=list(groups), columns=self.layout.names, use_threads=False
            )
            for batch in whole_batches(batches, piece):
                origins = Numbered(f"{file.name} row", range(row, row + len(batch)))
                yield self.layout.block(pa.Table.from_batches([batch]), origins)
                row += len(batch)


def _opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, memory_map=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {error}") from error


def _groups(metadata: Any) -> Iterator[tuple[int, int, int]]:
    """Runs of row groups of about the usual size, each with its first row."""
    start = row = first = size = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        row += metadata.row_group(group).num_rows
        if size >= PIECE_BYTES or group + 1 == metadata.num_row_groups:
            yield start, group + 1, first
            start, first, size = group + 1, row, 0
