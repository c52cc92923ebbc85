"""The files of a table source: one, or all of a folder, and the parts that their names tell of."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa

from data_pipeline.errors import DataError
from data_pipeline.sources.checks import PARTS, entries


class Numbered(Sequence[str]):
    """The origins of consecutive rows, such as `data.csv line 7`, made when they are asked for."""

    def __init__(self, text: str, first: int, count: int) -> None:
        """`text` and a number from `first` on, `count` times."""
        self._text, self._numbers = text, range(first, first + count)

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
            return [f"{self._text} {number}" for number in self._numbers[place]]
        return f"{self._text} {self._numbers[place]}"


def matches_suffix(path: Path, suffixes: Sequence[str]) -> bool:
    """Whether a file, or the first file of a folder, is called so."""
    if path.is_dir():
        return any(found.suffix.lower() in suffixes for found in path.iterdir() if found.is_file())
    return path.suffix.lower() in suffixes


def table_files(path: Path, suffixes: Sequence[str]) -> list[tuple[Path, str | None]]:
    """The file, or the files of a folder by name, each with its part.

    A folder whose files are all called by parts (`train-00000.parquet`, `test.csv`) has these.

    Raises:
        DataError: there is none, or the folder's folders stand for columns.
    """
    if not path.is_dir():
        return [(path, None)]
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
    return [(file, PARTS[word] if own else None) for file, word in zip(chosen, words, strict=True)]


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


def _said(schema: pa.Schema) -> str:
    return ", ".join(f"{entry.name} ({entry.type})" for entry in schema)
