"""What is known of every staged row: its key, its part, and where it is staged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.conversion.parts import (
    TRAIN,
    Split,
    by_class,
    by_content,
    check_part_name,
    sorted_classes,
)
from data_pipeline.conversion.staging import KEY, ORIGIN, PART, Staged, StagedRows, staged_column
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.sources.source import Piece

Renumbered = dict[str, list[NDArray[np.int64]]]
"""By label column and piece, the class of each of the piece's own numbers."""


def collected(
    columns: Sequence[Column], staged: Sequence[Staged]
) -> tuple[tuple[Column, ...], Renumbered]:
    """The columns with the classes and greatest lengths of all pieces together."""
    described, renumbered = [], {}
    for column in columns:
        whole = replace(column, dtype="int64") if column.kind == "label" else column
        if column.kind == "label" and not column.classes:
            names = [piece.names.get(column.name, []) for piece in staged]
            classes = sorted_classes([name for piece in names for name in piece])
            number = {name: place for place, name in enumerate(classes)}
            renumbered[column.name] = [
                np.array([number[name] for name in piece], np.int64) for piece in names
            ]
            whole = replace(whole, classes=classes)
        if column.kind in ("sequence", "text"):
            longest = max(piece.longest.get(column.name, 0) for piece in staged)
            whole = replace(column, max_length=longest)
        described.append(whole)
    return tuple(described), renumbered


@dataclass
class Index:
    """All rows, in source order.

    Attributes:
        keys: `(N, 2)`, what their inputs hash to.
        starts: `(pieces + 1,)`, the first row of each piece.
        part_of: `(N,)`, the number of their part.
        parts: The names of the parts.
    """

    keys: NDArray[np.uint64]
    starts: NDArray[np.int64]
    part_of: NDArray[np.int16]
    parts: list[str]

    def rows_of(self, part: int) -> NDArray[np.int64]:
        """The rows of a part, in source order."""
        return np.flatnonzero(self.part_of == part)

    def by_piece(self, rows: NDArray[np.int64]) -> tuple[tuple[int, NDArray[np.int64]], ...]:
        """Rising rows as pieces and the rows within each."""
        cuts = np.searchsorted(rows, self.starts)
        return tuple(
            (number, rows[first:last] - self.starts[number])
            for number, (first, last) in enumerate(pairwise(cuts))
            if first < last
        )

    def origin(self, folder: Path, row: int) -> str:
        """Where a row comes from, and its part."""
        piece = int(np.searchsorted(self.starts, row, side="right")) - 1
        rows = StagedRows(folder, piece, [ORIGIN])
        taken = rows.take(ORIGIN.name, np.array([row - self.starts[piece]]))[0]
        assert isinstance(taken, Ragged)
        return f"{taken.row(0).tobytes().decode()} ({self.parts[self.part_of[row]]})"


@dataclass(frozen=True)
class Indexed:
    """What an index is made of.

    Attributes:
        folder: Where the pieces are staged.
        pieces: The pieces of the source.
        staged: What each of them held.
        columns: The columns of the data set.
        renumbered: How each piece's own numbers of labels are renumbered.
    """

    folder: Path
    pieces: Sequence[Piece]
    staged: Sequence[Staged]
    columns: tuple[Column, ...]
    renumbered: Renumbered

    def labels(self, wanted: str | None) -> list[NDArray[np.int64]]:
        """The labels of each piece.

        Raises:
            DataError: there is no such label.
        """
        fitting = [
            (place, column)
            for place, column in enumerate(self.columns)
            if column.kind == "label" and wanted in (None, column.name)
        ]
        if not fitting:
            names = [column.name for column in self.columns]
            raise DataError(
                "a stratified split needs a column of labels, and there is "
                f"{'none' if wanted is None else f'none called {wanted!r}'} among {names}: "
                "name one with --label"
            )
        place, column = fitting[0]
        staged = staged_column(place, column)
        found = []
        for number in range(len(self.pieces)):
            rows = StagedRows(self.folder, number, [staged]).all_of(staged.name)
            own = self.renumbered.get(column.name)
            whole = rows.astype(np.int64)
            found.append(whole if own is None else own[number][whole])
        return found


def index_of(indexed: Indexed, split: Split, label: str | None) -> Index:
    """Reads the keys of all rows, and gives every row its part.

    Raises:
        DataError: a part would be empty, or has a name that is taken or that no folder can have.
    """
    labels = np.concatenate(indexed.labels(label)) if split.stratify else None
    wanted = [KEY] if split.by is None else [KEY, PART]
    keys, part_of = [], []
    number_of: dict[str, int] = {TRAIN: 0}
    for number, (piece, found) in enumerate(zip(indexed.pieces, indexed.staged, strict=True)):
        rows = StagedRows(indexed.folder, number, wanted)
        keys.append(rows.all_of(KEY.name).astype(np.uint64).reshape(-1, 2))
        names = [piece.part or TRAIN]
        which = np.zeros(found.rows, np.int64)
        if split.by is not None:
            names = found.names.get(f"/{split.by}", [])
            which = rows.all_of(PART.name).astype(np.int64)
        for name in names:
            check_part_name(name)
        places = [number_of.setdefault(name, len(number_of)) for name in names]
        part_of.append(np.array(places, np.int16)[which])
    sizes = [piece.rows for piece in indexed.staged]
    index = Index(
        keys=np.concatenate(keys),
        starts=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64),
        part_of=np.concatenate(part_of),
        parts=list(number_of),
    )
    _share_out(index, split, labels)
    return index


def _share_out(index: Index, split: Split, labels: NDArray[np.int64] | None) -> None:
    """Takes the parts' shares out of `train`, and refuses parts without rows."""
    fractions = split.fractions
    twice = sorted(set(fractions) & set(index.parts))
    if twice:
        raise DataError(
            f"the split names {twice}, but the source itself has the parts {index.parts}: "
            "give other names"
        )
    if fractions:
        rows = index.rows_of(0)
        keys = index.keys[rows]
        shares = by_content(keys, fractions)
        if labels is not None:
            shares = by_class(keys, labels[rows], fractions)
        index.part_of[rows] = np.where(shares == 0, 0, shares + (len(index.parts) - 1))
        index.parts.extend(fractions)
    counts = np.bincount(index.part_of, minlength=len(index.parts))
    for number, part in enumerate(index.parts):
        # A source with parts of its own need not have one called so.
        if not counts[number] and (part != TRAIN or fractions):
            raise DataError(
                f"part {part!r} would be empty: of {len(index.keys)} rows none falls to it; give "
                "other shares, stratify, or convert more rows"
            )
