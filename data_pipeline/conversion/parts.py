"""Which part a row belongs to, and which rows stand there twice: functions of the keys alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import FILE_NAME

TRAIN = "train"


@dataclass(frozen=True, kw_only=True)
class Split:
    """How rows come to their parts.

    Attributes:
        fractions: By part, its share; what remains is `train`. A row's part depends on its content
            alone, so that adding rows moves none from one part to another.
        by: The column whose values are the parts' names; it is left out of the data set.
        stratify: Whether each class has its exact share, by the rank of its contents' hashes, but
            for rows of equal inputs, which stay together; then a row next to the border may change
            its part when others are added.
    """

    fractions: Mapping[str, float] = field(default_factory=dict)
    by: str | None = None
    stratify: bool = False

    def check(self) -> None:
        """Refuses what cannot be followed.

        Raises:
            DataError: shares that leave nothing to train with, names that no folder can have, or
                ways that exclude each other.
        """
        for part, share in self.fractions.items():
            check_part_name(part)
            if part == TRAIN:
                raise DataError(f"the split names {TRAIN!r}: that is what the other parts leave")
            if not 0.0 < share < 1.0:
                raise DataError(f"the split gives {part!r} a share of {share}; give one in (0, 1)")
        if sum(self.fractions.values()) >= 1.0:
            raise DataError(
                f"the split's shares {dict(self.fractions)} leave nothing for {TRAIN!r}: "
                "their sum must be below 1"
            )
        if self.by is not None and (self.fractions or self.stratify):
            raise DataError(
                f"the split goes by column {self.by!r} and by shares: give one or the other"
            )
        if self.stratify and not self.fractions:
            raise DataError("a stratified split needs shares, such as validation=0.1")


def check_part_name(part: str) -> None:
    """Refuses a name that the part's folder cannot have.

    Raises:
        DataError: it is empty, hidden, a path, or that of the manifest.
    """
    if part.startswith(".") or part in {"", FILE_NAME} or {"/", "\0"} & set(part):
        raise DataError(f"{part!r} cannot be a part's name: it is also that of its folder")


def by_content(keys: NDArray[np.uint64], fractions: Mapping[str, float]) -> NDArray[np.int16]:
    """The part of each row by its key `(N, 2)`: 0 for `train`, i for the i-th of the fractions."""
    place = keys[:, 0].astype(np.float64) / 2.0**64
    borders = np.cumsum(list(fractions.values()))
    found = np.searchsorted(borders, place, side="right") + 1
    return np.where(found > len(borders), 0, found).astype(np.int16)


def by_class(
    keys: NDArray[np.uint64], labels: NDArray[np.int64], fractions: Mapping[str, float]
) -> NDArray[np.int16]:
    """The part of each row, each class being shared out by the rank of its keys.

    Of n rows of a class, the parts' borders lie at the whole numbers nearest to n times the sums
    of the shares. One that would part rows of equal keys lies behind the last of them. Equal keys
    of several classes count as rows of the first of these. So the shares are exact up to such rows.
    """
    found = np.zeros(len(keys), np.int16)
    borders = np.cumsum([0.0, *fractions.values()])
    order = np.lexsort((labels, keys[:, 1], keys[:, 0]))
    starts = np.flatnonzero(_first_of_run(keys[order]))
    sizes = np.diff(starts, append=len(keys))
    counted = labels[order[starts]].repeat(sizes)  # the first class of each run of equal keys
    by_label = np.argsort(counted, kind="stable")
    order, counted = order[by_label], counted[by_label]
    ends = np.append(np.flatnonzero(_first_of_run(keys[order])), len(keys))
    edges = np.flatnonzero(np.diff(counted, prepend=-1, append=-1))
    for start, stop in pairwise(edges):
        wanted = start + np.floor(borders * (stop - start) + 0.5).astype(np.int64)
        cuts = ends[np.searchsorted(ends, wanted)]
        for number, (first, last) in enumerate(pairwise(cuts), start=1):
            found[order[first:last]] = number
    return found


def _first_of_run(ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each key differs from the one before it."""
    differs = np.ones(len(ordered), np.bool_)
    differs[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return differs


@dataclass(frozen=True)
class Duplicates:
    """Rows with the same inputs as an earlier one.

    Attributes:
        within: Rows that repeat an earlier row of their part.
        across: Rows that repeat an earlier row of another part.
        named: Of the first few of these, the row and the earlier one.
    """

    within: int
    across: int
    named: tuple[tuple[int, int], ...] = ()


def duplicates(keys: NDArray[np.uint64], part_of: NDArray[np.int16], *, most: int) -> Duplicates:
    """Finds rows of equal keys; `most` of those across parts are named, the first in order."""
    order = np.argsort(keys[:, 0], kind="stable")
    first, second = keys[order, 0], keys[order, 1]
    same_first = first[1:] == first[:-1]
    if (same_first & (second[1:] != second[:-1])).any():  # 64 bits agree, 128 do not
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        first, second = keys[order, 0], keys[order, 1]
        same_first = first[1:] == first[:-1]
    repeats = np.concatenate([[False], same_first & (second[1:] == second[:-1])])
    if not repeats.any():
        return Duplicates(0, 0)
    # Within a group of equal keys the rows stand in their order; the first one leads it.
    leader = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
    later, earlier = order[repeats], order[leader[repeats]]
    # Before a later row of part p stands one of p already, or else only ones of other parts.
    pairs = np.stack([leader, part_of[order]], axis=1)
    _, seen = np.unique(pairs, axis=0, return_index=True)
    is_first = np.zeros(len(order), bool)
    is_first[seen] = True
    new_in_part = is_first[repeats]
    across = np.sort(later[new_in_part])
    leader_of = dict(zip(later[new_in_part].tolist(), earlier[new_in_part].tolist(), strict=True))
    named = tuple((row, leader_of[row]) for row in across[:most].tolist())
    return Duplicates(within=int((~new_in_part).sum()), across=int(new_in_part.sum()), named=named)


def sorted_classes(names: Sequence[str]) -> tuple[str, ...]:
    """The names of classes in order; where all are numbers, in that of the numbers."""
    unique = set(names)
    for kind in (int, float):
        try:
            return tuple(sorted(unique, key=lambda name: (kind(name), name)))
        except ValueError:
            continue
    return tuple(sorted(unique))
