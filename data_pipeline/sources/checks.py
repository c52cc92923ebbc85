"""What readers of every kind check and decide alike: options, links, labels, types, pieces."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import DTYPES, Column
from data_pipeline.shards import Values
from data_pipeline.sources.source import Reading

PIECE_BYTES = 16 * 2**20
"""About what one process reads at a time."""

BLOCK_BYTES = 4 * 2**20
"""About what a block holds."""

PARTS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""By the word that a folder or array is called by, the part that it belongs to."""

LABEL_NAMES = ("label", "labels")
"""A column of this name that holds whole numbers or strings is a label where none is named."""

INPUT_NAMES = ("x", "X")
"""Beside an array of this name one called `y` is a label as well; elsewhere it may be a place."""

TYPES = (*DTYPES, "label", "skip")
"""What the column of an array can be read as; `skip` leaves it out."""

MAX_CLASSES = 2**16
"""Whole numbers beyond this are taken for something else than the numbers of classes."""


def runs(num_rows: int, row_bytes: float, limit_bytes: int) -> Iterator[tuple[int, int]]:
    """Cuts rows into runs [start, stop) of at most `limit_bytes`, but of one row at least."""
    step = max(1, int(limit_bytes // max(row_bytes, 1)))
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)


def entries(root: Path, folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in `folder`, each sorted by name, without hidden ones.

    Raises:
        DataError: the folder cannot be read, or a link in it leads out of `root` or nowhere.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as found:
            visible = sorted((e for e in found if e.name[0] != "."), key=lambda e: e.name)
        for entry in visible:
            path = folder / entry.name
            if entry.is_symlink():
                check_inside(root, path)
            if entry.is_dir():
                folders.append(path)
            elif entry.is_file():
                files.append(path)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error
    return folders, files


def check_inside(root: Path, path: Path, *, must_exist: bool = True) -> None:
    """Refuses a path that leads out of `root`, through `..` or a link, or to nothing.

    Raises:
        DataError: it does; the message names the path and what it leads to.
    """
    target = path.resolve()
    if not target.is_relative_to(root.resolve()):
        raise DataError(
            f"{path} is a path that leaves the folder {root}: it leads to {target}; "
            "copy the file into the folder, or take the path out"
        )
    if must_exist and not target.exists():
        raise DataError(f"{path} leads to {target}, which does not exist: take it out or mend it")


def check_fixed_columns(path: Path, reading: Reading, labels: Sequence[str] = ("label",)) -> None:
    """Refuses options that cannot be followed where a format says itself what its columns are.

    Raises:
        DataError: types, stacked columns or a column of parts are asked for, or another label or
            picture column than those that there are.
    """
    for option, given in (
        ("--type", list(reading.types)),
        ("--stack", list(reading.stack)),
        ("--split-by", [] if reading.split_by is None else [reading.split_by]),
    ):
        if given:
            raise DataError(
                f"{path}: {option} is given for {given}, but the columns of this format are fixed, "
                f"image and {', '.join(labels)}: leave it out"
            )
    check_named(path, "--label", reading.label, labels)
    check_named(path, "--image", reading.image, ("image",))


def check_named_columns(path: Path, reading: Reading, names: Collection[str]) -> None:
    """Refuses options that name a column which is not there, or a type that there is not.

    Raises:
        DataError: so it is; the message lists what there is.
    """
    check_named(path, "--label", reading.label, names)
    check_named(path, "--image", reading.image, names)
    check_named(path, "--split-by", reading.split_by, names)
    for name, wanted in reading.types.items():
        check_named(path, "--type", name, names)
        if wanted not in TYPES:
            raise DataError(
                f"{path}: column {name!r} cannot be read as {wanted!r}; there are "
                f"{', '.join(TYPES)}"
            )
        if name in (reading.label, reading.image):
            raise DataError(
                f"{path}: column {name!r} is given the type {wanted}, and is to be a label or "
                "picture as well: give one of the two"
            )


def check_named(path: Path, option: str, name: str | None, names: Collection[str]) -> None:
    """Refuses a column that is not there.

    Raises:
        DataError: so it is; the message names the option, and lists what there is.
    """
    if name is not None and name not in names:
        raise DataError(
            f"{path} has no column {name!r}, which {option} names; its columns are {list(names)}"
        )


def is_label(name: str, reading: Reading, *, fits: bool, beside: Collection[str] = ()) -> bool:
    """Whether a column is a label: the one named, or one called so that holds what labels are.

    A column whose type is given is what its type says, and one of parts is no label. `beside` are
    the names of arrays, among which `y` is a label where there is an `x`.
    """
    if name == reading.split_by:
        return False
    if name in reading.types:
        return reading.types[name] == "label"
    if reading.label is not None:
        return name == reading.label
    is_y = name == "y" and any(inputs in beside for inputs in INPUT_NAMES)
    return fits and (name in LABEL_NAMES or is_y)


def numbered_classes(where: str, least: int, greatest: int) -> tuple[str, ...]:
    """The classes "0" to "greatest" of labels that are whole numbers.

    Raises:
        DataError: a label is negative, or so large that it is no number of a class.
    """
    if least < 0:
        raise DataError(
            f"{where} has the label {least}: labels are numbered from 0; renumber them, or say "
            "that they are plain numbers with --type NAME=int64"
        )
    if greatest >= MAX_CLASSES:
        raise DataError(
            f"{where} has the label {greatest:,}: labels are numbers of classes below "
            f"{MAX_CLASSES:,}; say that they are plain numbers with --type NAME=int64"
        )
    return tuple(str(number) for number in range(greatest + 1))


def as_type(values: NDArray[Any], wanted: str, where: str) -> NDArray[Any]:
    """The same values as another type; only floats may lose digits.

    Raises:
        DataError: a value is not one of the wanted type, such as 300 or 0.5 of uint8.
    """
    if values.dtype == np.dtype(wanted):
        return values
    with np.errstate(all="ignore"):
        cast = values.astype(wanted)
    if np.dtype(wanted).kind == "f":
        lost = np.isfinite(values) & ~np.isfinite(cast)
    else:
        # Back in the old type the value must be there again, and its sign with it.
        lost = (cast.astype(values.dtype) != values) | ((cast < 0) != (values < 0))
    if lost.any():
        place = tuple(int(index) for index in np.argwhere(lost)[0])
        raise DataError(f"{where} holds {values[place]}, which is no {wanted}: give another --type")
    return cast


def stacks(path: Path, columns: Sequence[Column], reading: Reading) -> dict[str, tuple[str, ...]]:
    """What is stacked of which columns; "*" stands for all numbers that are named in no stack.

    Raises:
        DataError: what is to be stacked are no number columns, one is stacked twice, or the new
            column's name is taken.
    """
    numbers = [column.name for column in columns if column.kind == "number"]
    named = {part for parts in reading.stack.values() for part in parts}
    rest = tuple(name for name in numbers if name not in named)
    found: dict[str, tuple[str, ...]] = {}
    used: list[str] = []
    for name, parts in reading.stack.items():
        whole = tuple(p for part in parts for p in (rest if part == "*" else (part,)))
        for part in whole:
            if part not in numbers:
                raise DataError(
                    f"{path}: {name!r} is to be stacked of {part!r}, which is no column of "
                    f"numbers; these are {numbers}"
                )
        used.extend(whole)
        found[name] = whole
    kept = {column.name for column in columns} - set(used)
    for name, whole in found.items():
        if not whole or name in kept or len(set(used)) != len(used):
            raise DataError(
                f"{path}: {name!r} cannot be stacked of {list(whole)}: it needs a name that no "
                "other column has, and at least one column; no column is stacked twice"
            )
    return found


def stack_columns(
    columns: Sequence[Column], stack: Mapping[str, tuple[str, ...]]
) -> tuple[Column, ...]:
    """The columns without those that are stacked; the tensors `(F,)` made of them come last."""
    taken = {name for names in stack.values() for name in names}
    return (
        *(column for column in columns if column.name not in taken),
        *(
            Column(name=name, kind="tensor", dtype="float32", shape=(len(parts),))
            for name, parts in stack.items()
        ),
    )


def stack_rows(
    rows: Mapping[str, Values | Sequence[str]],
    columns: Sequence[Column],
    stack: Mapping[str, tuple[str, ...]],
) -> dict[str, Values | Sequence[str]]:
    """The rows of `stack_columns`."""
    made: dict[str, Values | Sequence[str]] = {}
    for column in columns:
        if column.name in stack:
            parts = [np.asarray(rows[part], np.float32) for part in stack[column.name]]
            made[column.name] = np.stack(parts, axis=1)
        else:
            made[column.name] = rows[column.name]
    return made
