"""`write`: rows as a program makes them, one after the other, to a data set."""

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.conversion.options import Options, Progress, Report
from data_pipeline.conversion.parts import Split
from data_pipeline.conversion.passes import convert_source
from data_pipeline.errors import DataError
from data_pipeline.manifest import DTYPES, Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values
from data_pipeline.sources.source import Block, Piece, Reading

Row = Mapping[str, Any]

_BLOCK_BYTES = 4 * 2**20
_BLOCK_ROWS = 4_096


def write(
    folder: str | Path,
    rows: Iterable[Row],
    *,
    columns: Sequence[Column] | None = None,
    label: str | None = None,
    split: Mapping[str, float] | None = None,
    split_by: str | None = None,
    stratify: bool = False,
    missing_allowed: bool = False,
    workers: int = 1,
    rows_per_shard: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes rows, dicts by column name, as a data set that is there whole or not at all.

    A few megabytes of rows are in memory at a time. Without `columns`, the first row says what
    they are: a string is text, or the label if `label` names it; bytes are an encoded picture of
    three channels; a number stays one (of int64 or float64, where it is Python's own), an array is
    a tensor. Sequences, whose length differs from row to row, have to be declared. A label without
    classes has them collected from the rows, as strings or whole numbers. The column named by
    `split_by` says the row's part, and is left out.

    `split`, `stratify`, `workers` (of the writing; reading is the caller's) and `rows_per_shard`
    are those of `convert`. What was broken off is not taken up again, as rows come only once.

    Raises:
        DataError: there are no rows, one is not like its columns, or the folder exists.
        StorageError: the folder cannot be written.
    """
    source = _rows_source(iter(rows), columns, label, split_by)
    options = Options(
        reading=Reading(label=label, missing="keep" if missing_allowed else "refuse"),
        split=Split(fractions=dict(split or {}), by=split_by, stratify=stratify),
        rows_per_shard=rows_per_shard,
        workers=workers,
        progress=progress,
    )
    return convert_source(source, Path(folder), options, can_go_on=False)


def _rows_source(
    rows: Iterator[Row], columns: Sequence[Column] | None, label: str | None, split_by: str | None
) -> "_Rows":
    first = list(islice(rows, 1))
    if not first:
        raise DataError("there are no rows: a data set needs at least one")
    if columns is None:
        columns = [_inferred(name, value, label) for name, value in first[0].items()]
        if label is not None and label not in first[0]:
            raise DataError(f"the label is {label!r}, but row 0 has {list(first[0])}")
    described = tuple(column for column in columns if column.name != split_by)
    if split_by is not None:
        described += (Column(name=split_by, kind="text", dtype="uint8"),)
    return _Rows(described, chain(first, rows))


def _inferred(name: str, value: Any, label: str | None) -> Column:
    if name == label:
        return Column(name=name, kind="label", dtype="int64")
    if isinstance(value, str):
        return Column(name=name, kind="text", dtype="uint8")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return Column(name=name, kind="image", dtype="uint8", shape=(3,))
    array = np.asarray(value)
    if str(array.dtype) not in DTYPES:
        raise DataError(
            f"column {name!r} has {type(value).__name__} ({array.dtype}) in row 0: rows hold "
            "numbers, arrays of numbers, strings and encoded pictures"
        )
    kind = "tensor" if array.ndim else "number"
    return Column(name=name, kind=kind, dtype=str(array.dtype), shape=array.shape)  # type: ignore[arg-type]


@dataclass
class _Rows:
    """A source of one piece, which can be read once."""

    columns: tuple[Column, ...]
    rows: Iterator[Row]

    def __post_init__(self) -> None:
        # No other conversion has the same name, so that none is ever taken up again.
        self.pieces: tuple[Piece, ...] = (Piece(f"rows {uuid.uuid4()}", ()),)

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows, in blocks of a few megabytes."""
        del piece
        block: list[Row] = []
        size = start = 0
        for number, row in enumerate(self.rows):
            self._check(number, row)
            block.append(row)
            size += sum(getattr(value, "nbytes", 64) for value in row.values())
            size += sum(len(value) for value in row.values() if isinstance(value, (str, bytes)))
            if size >= _BLOCK_BYTES or len(block) == _BLOCK_ROWS:
                yield self._block(block, start)
                block, size, start = [], 0, number + 1
        if block:
            yield self._block(block, start)

    def _check(self, number: int, row: Row) -> None:
        wanted = {column.name for column in self.columns}
        if set(row) != wanted:
            raise DataError(f"row {number} has {sorted(row)}, but the columns are {sorted(wanted)}")

    def _block(self, block: Sequence[Row], start: int) -> Block:
        origins = [f"row {start + number}" for number in range(len(block))]
        return Block(
            {
                column.name: _values(column, [row[column.name] for row in block], origins)
                for column in self.columns
            },
            origins,
        )


def _values(
    column: Column, values: Sequence[Any], origins: Sequence[str]
) -> Values | Sequence[str]:
    if column.kind == "label" and not column.classes:
        return [str(value) for value in values]
    if column.kind == "text":
        return [str(value) for value in values]
    if column.kind == "image":
        return Ragged.of_bytes([bytes(value) for value in values])
    arrays = [np.asarray(value) for value in values]
    dtype = np.dtype(column.dtype)
    for array, origin in zip(arrays, origins, strict=True):
        found = array.shape[1:] if column.kind == "sequence" else array.shape
        fits = array.ndim >= 1 or column.kind != "sequence"
        if not fits or found != column.shape or not np.can_cast(array.dtype, dtype, "same_kind"):
            raise DataError(
                f"column {column.name!r} is {column.kind} of {column.dtype} and shape "
                f"{column.shape}, but {origin} has {array.dtype} of shape {array.shape}: declare "
                "it with columns=, as a sequence if its length differs"
            )
    if column.kind == "sequence":
        return Ragged.of(arrays, column.dtype, column.shape)
    return np.stack(arrays).astype(dtype)
