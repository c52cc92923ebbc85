"""What every kind of source gives: its columns, its pieces, and the rows of each piece."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from data_pipeline.manifest import Column
from data_pipeline.shards import Values


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a source is to be read.

    Attributes:
        size: Height and width that pictures are decoded and resized to; None keeps encoded ones.
        label: The column that holds class labels.
        image: The column that holds pictures: encoded bytes, or arrays (H, W) or (H, W, C).
        types: By column, the type to read it as, where another is wanted than the one inferred.
        stack: By name of a new tensor column, the number columns that it is made of.
        missing: Whether a missing value is refused, or kept as NaN and counted.
        split_by: The column that says which part a row belongs to; it is given as text, and is
            taken into no stack.
    """

    size: tuple[int, int] | None = None
    label: str | None = None
    image: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    stack: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: Literal["refuse", "keep"] = "refuse"
    split_by: str | None = None


@dataclass(frozen=True)
class Piece:
    """What one process reads at a time; pieces depend on the source alone.

    Attributes:
        name: Says where it lies, for messages, and is unique within the source.
        part: The part that its rows belong to, where the source itself has parts.
        files: The files it is read from.
        start: The first row, byte or file of it, as the source counts them.
        stop: The first one behind it.
    """

    name: str
    files: tuple[Path, ...]
    part: str | None = None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Block:
    """Some consecutive rows of a piece.

    Attributes:
        rows: By column; a label whose classes are not known beforehand is given by its names.
        origins: Where each row comes from (`cats/12.jpg`, `data.csv line 7`), for messages.
        bad: What is wrong with rows that had to be left out of the block, each with its origin.
    """

    rows: Mapping[str, Values | Sequence[str]]
    origins: Sequence[str]
    bad: tuple[str, ...] = ()


class Source(Protocol):
    """Something that can be made into a data set; it can be pickled.

    Whether work on it is taken up again is decided by its columns, its pieces and their files'
    sizes and times, by those of further files that a method `named_files()` may name, and by the
    versions of what reads it; without files, by its `repr`.
    """

    @property
    def columns(self) -> tuple[Column, ...]:
        """What its rows hold; a label without classes has them collected from its names."""
        ...

    @property
    def pieces(self) -> Sequence[Piece]:
        """All of it, in order; never a function of the number of processes."""
        ...

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece, in order, in blocks of a few megabytes."""
        ...
