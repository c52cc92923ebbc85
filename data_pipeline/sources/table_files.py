"""What table sources share: their files, the pieces and batches of these, the origins of rows."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sources.checks import PARTS, entries
from data_pipeline.sources.lines import Span, spans
from data_pipeline.sources.source import Piece


class Numbered(Sequence[str]):
    """The origins of consecutive rows, such as `data.csv line 7`, made when they are asked for."""

    def __init__(self, text: str, numbers: range) -> None:
        """`text` with each of the numbers."""
        self._text, self._numbers = text, numbers

    def __len__(self) -> int:
        """How many there are."""
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[str]: ...
    def __getitem__(self, place: int | slice) -> str | Sequence[str]:
        """One of them, or some."""
        if isinstance(place, slice):
            return Numbered(self._text, self._numbers[place])
        return f"{self._text} {self._numbers[place]}"


def matches_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file, or the first file of a folder, is called so."""
    if path.is_dir():
        return any(found.suffix.lower() in suffixes for found in path.iterdir() if found.is_file())
    return path.suffix.lower() in suffixes


class TableFile(NamedTuple):
    """A file, the part that its rows belong to, and what it is called in messages."""

    path: Path
    part: str | None
    shown: str


def table_files(path: Path, suffixes: Sequence[str]) -> list[TableFile]:
    """The file, or the files of a folder by name.

    A folder whose files are all called by parts (`train-00000.parquet`, `test.csv`) has these.

    Raises:
        DataError: there is none, or the folder's folders stand for columns.
    """
    if not path.is_dir():
        return [TableFile(path, None, path.name)]
    folders, files = entries(path, path)
    for folder in folders:
        if "=" in folder.name:
            raise DataError(
                f"{path} is partitioned: its folder {folder.name!r} stands for a column, which is "
                "not read; write it as plain files with all columns"
            )
        inside, more = entries(path, folder)
        files.extend(more if not inside else [])
    chosen = [file for file in files if file.suffix.lower() in suffixes]
    if not chosen:
        raise DataError(f"{path} holds no file of {', '.join(suffixes)}")
    words = [re.split(r"[-_.]", file.stem.lower())[0] for file in chosen]
    own = all(word in PARTS for word in words)
    return [
        TableFile(file, PARTS[word] if own else None, file.name if len(chosen) == 1 else str(file))
        for file, word in zip(chosen, words, strict=True)
    ]


def check_alike(first: Path, wanted: pa.Schema, other: Path, found: pa.Schema) -> None:
    """Refuses files of one folder that hold different columns.

    Raises:
        DataError: names or types differ.
    """
    if wanted.names != found.names or any(
        wanted.field(name).type != found.field(name).type for name in wanted.names
    ):
        raise DataError(
            f"{other} holds {_said(found)}, but {first} holds {_said(wanted)}: "
            "files of one folder need the same columns; convert them apart, or name one file"
        )


def pieces_of_lines(
    file: TableFile, size_bytes: int, *, quoted: bool
) -> Iterator[tuple[Piece, Span]]:
    """The pieces of a file that end at line ends, of about that size; see `lines.spans`.

    Raises:
        DataError: the file cannot be read, or its lines are not to be told apart.
    """
    for span in spans(file.path, size_bytes, quoted=quoted):
        name = f"{file.shown} lines {span.first_line} to {span.first_line + span.num_lines - 1}"
        yield Piece(name, (file.path,), file.part, span.start, span.stop), span


def whole_batches(batches: Iterator[pa.RecordBatch], piece: Piece) -> Iterator[pa.RecordBatch]:
    """A piece's batches, each looked through: what damage may say of lengths ends the process.

    Raises:
        DataError: a batch cannot be read, or is not whole.
    """
    try:
        for batch in batches:
            batch.validate(full=True)
            yield batch
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{piece.name} of {piece.files[0]} cannot be read: {error}") from error


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{entry.name} ({entry.type})" for entry in schema)
