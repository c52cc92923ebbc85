"""CSV and TSV, one file or a folder of them, each with a first line of names.

Types are those that pyarrow infers from the first 16 MiB, unless given; labels are read as they
stand. A line with too many or too few values is left out and named.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from data_pipeline.errors import DataError
from data_pipeline.sources.checks import PIECE_BYTES
from data_pipeline.sources.lines import Span, behind_first_line, content_of, delimiter_of
from data_pipeline.sources.source import Block, Piece, Reading
from data_pipeline.sources.table_files import Numbered, matches_suffix, pieces_of_lines, table_files
from data_pipeline.sources.tables import Layout, Tables, cast_type, layout_of

SUFFIXES = (".csv", ".tsv", ".tab")

_ROW = re.compile(r"Row #(\d+)")


def matches(path: Path) -> bool:
    """Whether it is called .csv, .tsv or .tab, or is a folder of such files."""
    return matches_suffix(path, SUFFIXES)


def open_source(path: Path, reading: Reading) -> "CsvFiles":
    """The source, its types inferred.

    Raises:
        DataError: there is nothing to read, or a column cannot be kept.
    """
    files = table_files(path, SUFFIXES)
    names: list[str] | None = None
    found: list[tuple[Piece, Span]] = []
    for file in files:
        own = _names(file.path)
        if names is not None and own != names:
            raise DataError(
                f"{file.path} has the columns {own}, but {files[0].path} has {names}: files of "
                "one folder need the same columns"
            )
        names = own
        found.extend(pieces_of_lines(file, PIECE_BYTES, quoted=True))
    assert names is not None
    types, layout = _inferred(*found[0], names, reading)
    pieces, spans = zip(*found, strict=True)
    return CsvFiles(pieces, layout, spans, tuple(names), types)


@dataclass(frozen=True)
class CsvFiles(Tables):
    """Pieces end at line ends; the first one of a file holds the line of names as well."""

    spans: tuple[Span, ...]
    names: tuple[str, ...]
    types: dict[str, pa.DataType]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece.

        Raises:
            DataError: a value is not of its column's type; the message has the line.
        """
        lines = _Lines(piece, self.spans[self.pieces.index(piece)])
        table, bad = lines.table(self.names, self.types, self.layout.names)
        origins = lines.origins(len(table), bad)
        messages = tuple(lines.message(row) for row in bad)
        yield from self.blocks(table, origins, messages)
        if not len(table):
            yield Block({name: [] for name in self.layout.names}, (), messages)


class _Lines:
    """The bytes of a piece, and which line each of its rows stands in."""

    def __init__(self, piece: Piece, span: Span) -> None:
        self.file, self._span = piece.files[0], span
        self._is_head = span.start == 0
        self.content = content_of(self.file, span.start, span.stop)

    def table(
        self,
        names: tuple[str, ...],
        types: dict[str, pa.DataType],
        wanted: list[str] | None,
    ) -> tuple[pa.Table, list[Any]]:
        """The rows, and the lines that have too many or too few values."""
        bad: list[Any] = []

        def skip(row: Any) -> str:
            bad.append(row)
            return "skip"

        body = (
            behind_first_line(self.content, delimiter_of(self.file))
            if self._is_head
            else self.content
        )
        if not body.strip():
            fields = [(name, types.get(name, pa.null())) for name in wanted or names]
            return pa.schema(fields).empty_table(), bad
        try:
            table = pyarrow.csv.read_csv(
                pa.BufferReader(body),
                read_options=pyarrow.csv.ReadOptions(
                    use_threads=False, column_names=list(names), block_size=2**30
                ),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=delimiter_of(self.file),
                    newlines_in_values=True,
                    invalid_row_handler=skip,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, include_columns=wanted or []
                ),
            )
        except pa.ArrowException as error:
            raise DataError(self._refusal(error, names)) from error
        return table, bad

    def origins(self, rows: int, bad: list[Any]) -> Any:
        """Where the rows come from."""
        skipped = {int(row.number) for row in bad}
        first = self._span.first_line + self._is_head
        if not skipped and rows == self._span.num_lines - self._is_head:
            return Numbered(f"{self.file.name} line", range(first, first + rows))
        lines = self._record_lines()
        kept = [line for row, line in enumerate(lines, start=1) if row not in skipped]
        return [f"{self.file.name} line {line}" for line in kept]

    def message(self, row: Any) -> str:
        """What is wrong with a line of too many or too few values."""
        line = self._record_lines()[int(row.number) - 1]
        return (
            f"{self.file} line {line} has {row.actual_columns} values where there are "
            f"{row.expected_columns} columns"
        )

    def _record_lines(self) -> list[int]:
        """The line in which each row begins; empty lines are no rows."""
        text = io.StringIO(self.content.decode("utf-8", "replace"), newline="")
        reader = csv.reader(text, delimiter=delimiter_of(self.file))
        lines, before = [], 0
        try:
            for record in reader:
                if record:
                    lines.append(self._span.first_line + before)
                before = reader.line_num
        except csv.Error:  # what stands behind is not numbered
            lines.append(self._span.first_line + before)
        return lines[1:] if self._is_head else lines

    def _refusal(self, error: pa.ArrowException, names: tuple[str, ...]) -> str:
        text = str(error)
        found = _ROW.search(text)
        where = str(self.file)
        if found is not None:
            lines = self._record_lines()
            row = min(int(found[1]), len(lines))
            where = f"{self.file} line {lines[row - 1]}" if lines else where
        column = re.search(r"column #(\d+)", text)
        if column is None:
            return f"{where} cannot be read: {text}; mend the line"
        name = names[int(column[1])]
        what = text.rpartition("CSV conversion error to ")[2]
        return (
            f"{where}, column {name!r} cannot be read as {what}; mend it, or read the column as "
            f"another type with --type {name}=TYPE"
        )


def _inferred(
    piece: Piece, span: Span, names: list[str], reading: Reading
) -> tuple[dict[str, pa.DataType], Layout]:
    """The Arrow type of each column, and what becomes of it."""
    given = {
        name: kind
        for name, wanted in reading.types.items()
        if (kind := pa.large_binary() if wanted in ("image", "grey") else cast_type(name, wanted))
        is not None
    }
    if reading.split_by is not None:
        given[reading.split_by] = pa.large_string()
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise DataError(f"{piece.files[0]} has no columns {unknown}; it has {names}")
    lines = _Lines(piece, span)
    table, _ = lines.table(tuple(names), given, None)
    if not len(table) and not reading.types:
        raise DataError(f"{piece.files[0]} holds no rows behind its line of names")
    layout = layout_of(piece.files[0], table.schema, reading)
    types = {entry.name: table.schema.field(entry.name).type for entry in layout.fields}
    for entry in layout.fields:
        if entry.column.kind == "label":
            types[entry.name] = pa.large_string()
    return types, layout


def _names(file: Path) -> list[str]:
    head = content_of(file, 0, PIECE_BYTES)
    if not head.strip():
        raise DataError(f"{file} is empty: a first line of names and one row at least are needed")
    first = head[: len(head) - len(behind_first_line(head, delimiter_of(file)))]
    try:
        names = next(
            csv.reader(io.StringIO(first.decode(), newline=""), delimiter=delimiter_of(file))
        )
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise DataError(f"{file} line 1 holds no names of columns: {error}") from error
    if not all(names):
        raise DataError(f"{file} line 1 leaves a column without a name: {names}")
    return names
