"""JSON lines: an object a line, one file or a folder of them.

Types are those that pyarrow infers from the first 16 MiB, unless given. A line that is no object is
left out and named.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.json

from data_pipeline.errors import DataError
from data_pipeline.sources.checks import PIECE_BYTES
from data_pipeline.sources.lines import Span, content_of
from data_pipeline.sources.source import Block, Piece, Reading
from data_pipeline.sources.table_files import matches_suffix, pieces_of_lines, table_files
from data_pipeline.sources.tables import Tables, cast_type, layout_of

SUFFIXES = (".jsonl", ".ndjson")

_ROW = re.compile(r" in row (\d+)")


def matches(path: Path) -> bool:
    """Whether it is called .jsonl or .ndjson, or is a folder of such files."""
    return matches_suffix(path, SUFFIXES)


def open_source(path: Path, reading: Reading) -> "JsonLines":
    """The source, its types inferred.

    Raises:
        DataError: there is nothing to read, or a column cannot be kept.
    """
    found: list[tuple[Piece, Span]] = []
    for file in table_files(path, SUFFIXES):
        found.extend(pieces_of_lines(file, PIECE_BYTES, quoted=False))
    if not found:
        raise DataError(f"{path} is empty: an object a line is needed")
    given = [
        (name, kind)
        for name, wanted in reading.types.items()
        if (kind := cast_type(name, wanted)) is not None
    ]
    if reading.split_by is not None:
        given.append((reading.split_by, pa.large_string()))
    pieces, spans = zip(*found, strict=True)
    lines, _, _ = _good_lines(*found[0])
    if not lines:
        raise DataError(f"{pieces[0].name} holds no object")
    table = _parsed(pieces[0], lines, pa.schema(given), "infer")
    layout = layout_of(path, table.schema, reading)
    return JsonLines(pieces, layout, spans, table.schema)


@dataclass(frozen=True)
class JsonLines(Tables):
    """Pieces end at line ends."""

    spans: tuple[Span, ...]
    schema: pa.Schema

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece.

        Raises:
            DataError: a value is not of its column's type, or a column is a new one.
        """
        lines, numbers, bad = _good_lines(piece, self.spans[self.pieces.index(piece)])
        if not lines:
            yield Block({}, (), tuple(bad))
            return
        table = _parsed(piece, lines, self.schema, "error").select(self.layout.names)
        origins = [f"{piece.files[0].name} line {number}" for number in numbers]
        yield from self.blocks(table, origins, bad)


def _good_lines(piece: Piece, span: Span) -> tuple[list[bytes], list[int], list[str]]:
    """The lines that are objects, their numbers, and what is wrong with the others."""
    file = piece.files[0]
    content = content_of(file, span.start, span.stop)
    lines: list[bytes] = []
    numbers: list[int] = []
    bad: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=span.first_line):
        if not line.strip():
            continue
        try:
            if not isinstance(json.loads(line), dict):
                raise ValueError("a line holds one object, in braces")
        except ValueError as error:
            bad.append(f"{file} line {number} is no JSON object: {error}")
            continue
        lines.append(line)
        numbers.append(number)
    return lines, numbers, bad


def _parsed(piece: Piece, lines: list[bytes], schema: pa.Schema, unexpected: str) -> pa.Table:
    content = b"\n".join(lines) + b"\n"
    try:
        return pyarrow.json.read_json(
            pa.BufferReader(content),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=schema if len(schema) else None,
                unexpected_field_behavior=unexpected,
            ),
        )
    except pa.ArrowException as error:
        found = _ROW.search(str(error))
        where = f"{piece.name} of {piece.files[0]}"
        if found is not None and int(found[1]) < len(lines):
            where += f": {lines[int(found[1])][:80]!r}"
        raise DataError(
            f"{where} does not fit the columns {schema.names}: {error}; mend it, or give a type "
            "with --type NAME=TYPE"
        ) from error
