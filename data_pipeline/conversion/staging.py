"""The first pass: each piece of the source becomes an Arrow file of rows with their keys.

A label whose classes come from its names is staged as numbers of the piece's own names, in the
order in which they appear; the second pass knows all pieces and renumbers them.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipeline.conversion.content import KEY_WORDS, content_keys
from data_pipeline.durable import fsync_file, write_whole
from data_pipeline.errors import DataError, StorageError
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values, arrow_type, check_rows, to_arrow, view_of
from data_pipeline.sources.source import Block, Piece, Source
from data_pipeline.statistics import check_finite, check_labels

# No column of a source has a name of these: theirs are numbered.
KEY = Column(name="key", kind="tensor", dtype="uint64", shape=(KEY_WORDS,))
ORIGIN = Column(name="origin", kind="text", dtype="uint8")
PART = Column(name="part", kind="number", dtype="int64")


@dataclass(frozen=True)
class Staging:
    """What every process of the first pass is told.

    Attributes:
        source: What is read.
        folder: Where the staged pieces go.
        columns: The columns of the data set, labels without classes among them.
        split_by: The column that says the part.
        missing_allowed: Whether NaN is let through.
    """

    source: Source
    folder: Path
    columns: tuple[Column, ...]
    split_by: str | None
    missing_allowed: bool

    @property
    def inputs(self) -> tuple[Column, ...]:
        """The columns that a row's key is taken of."""
        return tuple(column for column in self.columns if column.kind != "label")

    @property
    def staged(self) -> tuple[Column, ...]:
        """The columns of a staged file."""
        part = () if self.split_by is None else (PART,)
        numbered = (staged_column(n, column) for n, column in enumerate(self.columns))
        return (*numbered, KEY, ORIGIN, *part)


def staged_column(number: int, column: Column) -> Column:
    """The column of a staged file that holds a column of the data set."""
    if column.kind == "label":
        return Column(name=f"c{number}", kind="number", dtype="int64")
    return Column(name=f"c{number}", kind=column.kind, dtype=column.dtype, shape=column.shape)


@dataclass(frozen=True)
class Staged:
    """What a piece held; it stands beside its file, and says that the file is finished.

    Attributes:
        rows: The rows staged.
        size_bytes: Of the rows, without keys and origins.
        names: Of labels without classes, and of the column that says the part: the names, in the
            order of their numbers.
        longest: Of sequences and texts, the length of the longest one.
        bad: What was wrong with rows left out.
    """

    rows: int
    size_bytes: int
    names: dict[str, list[str]] = field(default_factory=dict)
    longest: dict[str, int] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)


def stage_piece(staging: Staging, task: tuple[int, Piece]) -> Staged:
    """Reads a piece and stages it, unless that was done before.

    Raises:
        DataError: the piece cannot be read, or holds what its columns do not allow.
        StorageError: the folder cannot be written.
    """
    number, piece = task
    file, mark = staged_file(staging.folder, number), _mark(staging.folder, number)
    if mark.exists() and file.exists():
        return msgspec.json.decode(mark.read_bytes(), type=Staged)
    aside = file.with_name(f"{file.name}.{os.getpid()}.partial")
    schema = pa.schema([(column.name, arrow_type(column)) for column in staging.staged])
    counter = _Counter(staging)
    try:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for block in _blocks(staging.source, piece):
                arrays = counter.arrays(block)
                if arrays is not None:
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
        fsync_file(aside)
        aside.replace(file)
    except OSError as error:
        raise StorageError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    staged = counter.staged()
    write_whole(mark, msgspec.json.encode(staged))
    return staged


def _blocks(source: Source, piece: Piece) -> Iterator[Block]:
    """A failure to read must not pass for one to write."""
    try:
        yield from source.read(piece)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{piece.name} cannot be read: {error}") from error


def staged_file(folder: Path, number: int) -> Path:
    """Where a piece is staged."""
    return folder / f"{number:08d}.arrow"


def _mark(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}.json"


class _Counter:
    """Turns blocks into Arrow, and keeps count of what they hold."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._rows = self._size_bytes = 0
        self._numbers: dict[str, dict[str, int]] = {}
        self._longest: dict[str, int] = {}
        self._bad: list[str] = []

    def staged(self) -> Staged:
        names = {key: list(numbers) for key, numbers in self._numbers.items()}
        return Staged(self._rows, self._size_bytes, names, self._longest, self._bad)

    def arrays(self, block: Block) -> list[pa.Array] | None:
        """The columns of a staged batch, or None for a block without rows."""
        self._bad.extend(block.bad)
        count = len(block.origins)
        if not count:
            return None
        staging = self._staging
        rows: dict[str, Values] = {}
        for column in staging.columns:
            rows[column.name] = self._column(column, block)
        keys = content_keys(staging.inputs, rows, count)
        arrays = [
            to_arrow(staged_column(number, column), rows[column.name])
            for number, column in enumerate(staging.columns)
        ]
        self._rows += count
        self._size_bytes += sum(values.nbytes for values in rows.values())
        arrays += [to_arrow(KEY, keys), pa.array(list(block.origins), pa.large_string())]
        if staging.split_by is not None:
            arrays.append(pa.array(self._parts(staging.split_by, block.rows[staging.split_by])))
        return arrays

    def _column(self, column: Column, block: Block) -> Values:
        values, origins = block.rows[column.name], block.origins
        if len(values) != len(origins):
            raise DataError(
                f"column {column.name!r} has {len(values)} rows, but there are {len(origins)} "
                f"from {origins[0]} on"
            )
        if column.kind == "label" and not column.classes:
            return self._numbered(column.name, _as_names(values))
        if not isinstance(values, (np.ndarray, Ragged)):
            values = Ragged.of_bytes([value.encode() for value in values])
        try:
            check_rows(column, values)
            if column.kind == "label":
                assert not isinstance(values, Ragged)
                values = values.astype(np.int64)
                check_labels(column, values)
        except DataError as error:
            raise DataError(f"{error} (rows from {origins[0]} to {origins[-1]})") from error
        if column.kind in ("number", "tensor", "sequence"):
            allowed = self._staging.missing_allowed
            check_finite(column, values, missing_allowed=allowed, origin=lambda row: origins[row])
        if isinstance(values, Ragged) and column.kind != "image":
            longest = int(values.lengths.max(initial=0))
            self._longest[column.name] = max(longest, self._longest.get(column.name, 0))
        return values

    def _numbered(self, key: str, names: Sequence[str]) -> NDArray[np.int64]:
        numbers = self._numbers.setdefault(key, {})
        return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)

    def _parts(self, key: str, values: Values | Sequence[str]) -> NDArray[np.int64]:
        # A column of the data set may have the same name in another piece: they share nothing.
        return self._numbered(f"/{key}", _as_names(values))


def _as_names(values: Values | Sequence[str]) -> Sequence[str]:
    if isinstance(values, Ragged):
        return [values.row(row).tobytes().decode() for row in range(len(values))]
    if isinstance(values, np.ndarray):
        return [str(value) for value in values.tolist()]
    return values


class StagedRows:
    """The rows of a staged piece, memory-mapped."""

    def __init__(self, folder: Path, number: int, columns: Sequence[Column]) -> None:
        """Maps the file; nothing is read yet.

        Raises:
            DataError: it is not as it was written.
        """
        file = staged_file(folder, number)
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(file)))
            batches = [reader.get_batch(place) for place in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file} cannot be read: {error}; remove {folder.parent} and convert again: what "
                "is staged there is lost with it, and the source is read anew"
            ) from error
        self._blocks: dict[str, list[Values]] = {
            column.name: [view_of(file, batch, column) for batch in batches] for column in columns
        }
        sizes = [batch.num_rows for batch in batches]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    def take(self, name: str, rows: NDArray[np.int64]) -> list[Values]:
        """Copies of rows, in rising order, a piece of them from each batch."""
        found: list[Values] = []
        cuts = np.searchsorted(rows, self._starts)
        for block, start, first, last in zip(
            self._blocks[name], self._starts, cuts, cuts[1:], strict=False
        ):
            if first < last:
                local = rows[first:last] - start
                found.append(
                    block.take(local) if isinstance(block, Ragged) else np.take(block, local, 0)
                )
        return found

    def all_of(self, name: str) -> NDArray[Any]:
        """A whole column of fixed shape."""
        blocks = [block for block in self._blocks[name] if not isinstance(block, Ragged)]
        return np.concatenate(blocks) if blocks else np.empty(0)


def joined(values: Sequence[Values]) -> Values:
    """Rows one behind the other."""
    if not isinstance(values[0], Ragged):
        return np.concatenate([part for part in values if isinstance(part, np.ndarray)])
    ragged = [part for part in values if isinstance(part, Ragged)]
    lengths = np.concatenate([part.lengths for part in ragged])
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
    return Ragged(offsets, np.concatenate([part.values for part in ragged]))
