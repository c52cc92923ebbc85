"""Arrow IPC, as file or stream, and Feather (version 2, which is the same), one or a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sources.checks import BLOCK_BYTES, PIECE_BYTES, runs
from data_pipeline.sources.source import Block, Piece, Reading
from data_pipeline.sources.table_files import Numbered, check_alike, matches_suffix, table_files
from data_pipeline.sources.tables import Layout, layout_of

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
    for file, part in files:
        with _opened(file) as reader:
            if schema is None:
                schema = reader.schema
            check_alike(files[0][0], schema, file, reader.schema)
            shown = file.name if len(files) == 1 else str(file)
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
    return ArrowFiles(tuple(pieces), tuple(first_rows), layout_of(path, schema, reading))


@dataclass(frozen=True)
class ArrowFiles:
    """Pieces are runs of record batches, or whole streams."""

    pieces: tuple[Piece, ...]
    first_rows: tuple[int, ...]
    layout: Layout

    @property
    def columns(self) -> tuple[Any, ...]:
        """The columns of the data set."""
        return self.layout.columns

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece, counted from 0 in their file.

        Raises:
            DataError: the file is damaged.
        """
        file = piece.files[0]
        row = self.first_rows[self.pieces.index(piece)]
        with _opened(file) as reader:
            batches = _batches(reader, piece)
            while True:
                try:
                    batch = next(batches, None)
                    if batch is None:
                        return
                    # Lengths and offsets out of a damaged header would end the process.
                    batch.validate(full=True)
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise DataError(f"{piece.name} of {file} cannot be read: {error}") from error
                table = pa.Table.from_batches([batch.select(self.layout.names)])
                for start, stop in runs(len(table), table.nbytes / max(len(table), 1), BLOCK_BYTES):
                    origins = Numbered(f"{file.name} row", row + start, stop - start)
                    yield self.layout.block(table.slice(start, stop - start), origins)
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
