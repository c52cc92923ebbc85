"""Arrow IPC, as file or stream, and Feather (version 2, which is the same), one or a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sources.checks import PIECE_BYTES, runs
from data_pipeline.sources.source import Block, Piece, Reading
from data_pipeline.sources.table_files import (
    Numbered,
    check_alike,
    matches_suffix,
    table_files,
    whole_batches,
)
from data_pipeline.sources.tables import Tables, layout_of

SUFFIXES = (".arrow", ".feather", ".ipc", ".arrows")

_FILE, _FEATHER_1 = b"ARROW1", b"FEA1"


def matches(path: Path) -> bool:
    """Whether it is called .arrow, .arrows, .ipc or .feather, or is a folder of such files."""
    return matches_suffix(path, SUFFIXES)


def open_source(path: Path, reading: Reading) -> "ArrowFiles":
    """The source; streams are read whole, by one process each.

    Raises:
        DataError: there is nothing to read, a file is damaged, or a column cannot be kept.
    """
    files = table_files(path, SUFFIXES)
    pieces: list[Piece] = []
    first_rows: list[int] = []
    schema: pa.Schema | None = None
    for file, part, shown in files:
        with _opened(file) as reader:
            found = reader.schema
            if schema is None:
                schema = found
            check_alike(files[0].path, schema, file, found)
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                count = reader.num_record_batches
                sizes = [reader.get_batch(number).num_rows for number in range(count)]
                for start, stop in runs(count, file.stat().st_size / max(count, 1), PIECE_BYTES):
                    name = f"{shown} batches {start} to {stop - 1}"
                    pieces.append(Piece(name, (file,), part, start, stop))
                    first_rows.append(sum(sizes[:start]))
            else:
                pieces.append(Piece(shown, (file,), part))
                first_rows.append(0)
    assert schema is not None
    layout = layout_of(path, schema, reading)
    return ArrowFiles(tuple(pieces), layout, tuple(first_rows))


@dataclass(frozen=True)
class ArrowFiles(Tables):
    """Pieces are runs of record batches, or whole streams."""

    first_rows: tuple[int, ...]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece, counted from 0 in their file.

        Raises:
            DataError: the file is damaged.
        """
        file = piece.files[0]
        row = self.first_rows[self.pieces.index(piece)]
        with _opened(file) as reader:
            for batch in whole_batches(_batches(reader, piece), piece):
                table = pa.Table.from_batches([batch.select(self.layout.names)])
                origins = Numbered(f"{file.name} row", range(row, row + len(table)))
                yield from self.blocks(table, origins)
                row += len(table)


def _batches(reader: Any, piece: Piece) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        for number in range(piece.start, piece.stop):
            yield reader.get_batch(number)
    else:
        yield from reader


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with pa.memory_map(str(file)) as mapped:
            start = mapped.read(len(_FILE))
            if start.startswith(_FEATHER_1):
                raise DataError(
                    f"{file} is Feather of version 1, which is no Arrow: write it again as "
                    "version 2"
                )
            mapped.seek(0)
            is_file = start == _FILE
            reader = pa.ipc.open_file(mapped) if is_file else pa.ipc.open_stream(mapped)
            with reader:
                yield reader
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as Arrow IPC: {error}") from error
