"""NumPy files: one `.npy`, a folder of them, or the arrays of a `.npz`, a column an array."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import DTYPES, Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values
from data_pipeline.sources.checks import (
    BLOCK_BYTES,
    PARTS,
    PIECE_BYTES,
    as_type,
    check_named_columns,
    entries,
    is_label,
    numbered_classes,
    runs,
    stack_columns,
    stack_rows,
    stacks,
)
from data_pipeline.sources.npy import StoredArray, check_sums, find_arrays, open_rows
from data_pipeline.sources.pictures import array_column, read_arrays
from data_pipeline.sources.source import Block, Piece, Reading

_WORD = "|".join(PARTS)
_IN_PART = re.compile(f"(?P<before>{_WORD})_(?P<name>.+)|(?P<stem>.+)_(?P<behind>{_WORD})")

_Parts = Mapping[str | None, Mapping[str, StoredArray]]


def matches(path: Path) -> bool:
    """Whether it is a `.npy` or `.npz` file, or a folder with a `.npy` file in it."""
    if path.is_dir():
        return any(file.suffix == ".npy" for file in path.iterdir() if file.name[0] != ".")
    return path.suffix in (".npy", ".npz") and path.is_file()


def open_source(path: Path, reading: Reading) -> "NumpyFiles":
    """A column for each array: numbers, tensors, a text for strings, or a label.

    A single `.npy` has the column `x`, or the one that `reading` names as label or picture. The
    columns of a folder are called like its files. Where every array's name ends or begins with
    `train`, `val`, `valid`, `validation` or `test` (`x_train`, `test_images`) these become parts.

    The label is the column that `reading` names, else any called `label` or `labels`, or `y` beside
    an `x`, that holds whole numbers or strings, one a row. Whole numbers have the classes "0" to
    the greatest one. The picture column's arrays `(N, H, W)` or `(N, H, W, C)` become
    `(N, C, H, W)`.

    Values keep their type; bool becomes uint8. Both byte orders and both memory orders are read;
    nothing is ever unpickled. A `.npz` that is compressed is read in one piece for each part, since
    it can only be read from its beginning.

    Raises:
        DataError: a file is damaged or cut short, an array is of a type that no shard holds, arrays
            differ in their number of rows, or parts in their columns.
    """
    parts = _by_part(path, _arrays(path, reading))
    names = list(dict.fromkeys(name for found in parts.values() for name in found))
    check_named_columns(path, reading, names)
    if reading.size is not None and reading.image is None:
        raise DataError(
            f"{path}: a size is given, but no column of pictures: name it with --image; the "
            f"columns are {names}"
        )
    parts = {
        part: {name: a for name, a in found.items() if reading.types.get(name) != "skip"}
        for part, found in parts.items()
    }
    for part, found in parts.items():
        _check_rows(path, part, found)
    _check_alike(path, parts)
    names = list(next(iter(parts.values())))
    columns = tuple(_column(parts, name, reading) for name in names)
    stack = stacks(path, columns, reading)
    return NumpyFiles(
        reading=reading,
        arrays=tuple((part, tuple(found.values())) for part, found in parts.items()),
        plain=columns,
        stack=stack,
        columns=stack_columns(columns, stack),
        pieces=tuple(piece for part, found in parts.items() for piece in _pieces(part, found)),
    )


@dataclass(frozen=True)
class NumpyFiles:
    """Arrays of the same number of rows; `plain` are their columns before any are stacked."""

    reading: Reading
    arrays: tuple[tuple[str | None, tuple[StoredArray, ...]], ...]
    plain: tuple[Column, ...]
    stack: Mapping[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    pieces: tuple[Piece, ...]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece; the first of a part also checks the sums that `.npz` files have."""
        arrays = dict(self.arrays)[piece.part]
        if piece.start == 0:
            check_sums(arrays)
        readers = [open_rows(array) for array in arrays]
        row_bytes = sum(array.row_bytes for array in arrays)
        for first, last in runs(piece.stop - piece.start, row_bytes, BLOCK_BYTES):
            start, stop = piece.start + first, piece.start + last
            rows = {
                column.name: _values(column, read(start, stop), array, self.reading)
                for column, array, read in zip(self.plain, arrays, readers, strict=True)
            }
            origins = [f"{arrays[0].name} row {row}" for row in range(start, stop)]
            yield Block(stack_rows(rows, self.columns, self.stack), origins)


def _arrays(path: Path, reading: Reading) -> list[StoredArray]:
    if path.is_dir():
        files = [file for file in entries(path, path)[1] if file.suffix in (".npy", ".npz")]
        packed = [file for file in files if file.suffix == ".npz"]
        if packed or not files:
            what = f"holds {packed[0].name}" if packed else "holds no .npy file"
            raise DataError(f"{path} {what}: give a folder of .npy files, or one .npz file")
        return [array for file in files for array in find_arrays(file, file.stem)]
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise DataError(f"{path} is no .npy or .npz file, nor a folder of .npy files")
    if reading.label is not None and reading.image is not None and path.suffix == ".npy":
        raise DataError(
            f"{path} is one array: it cannot be both the label {reading.label!r} and the picture "
            f"{reading.image!r}; give a folder of .npy files, or a .npz file"
        )
    return find_arrays(path, reading.label or reading.image or "x")


def _by_part(path: Path, arrays: Sequence[StoredArray]) -> _Parts:
    """By part and column; one part None unless every array's name holds that of a part."""
    found = {array.name: _IN_PART.fullmatch(array.name) for array in arrays}
    parts: dict[str | None, dict[str, StoredArray]] = {}
    for array in arrays:
        match = found[array.name]
        part, name = None, array.name
        if match is not None and all(found.values()):
            part = PARTS[match["before"] or match["behind"]]
            name = match["name"] or match["stem"]
        if name in parts.setdefault(part, {}):
            other = parts[part][name].name
            raise DataError(f"{path}: {other} and {array.name} are both {name!r} of part {part!r}")
        parts[part][name] = array
    return {part: dict(sorted(parts[part].items())) for part in sorted(parts, key=str)}


def _check_rows(path: Path, part: str | None, columns: Mapping[str, StoredArray]) -> None:
    if not columns:
        raise DataError(f"{path}: every column is left out by --type NAME=skip")
    for array in columns.values():
        if array.refused:
            raise DataError(f"{array.where} {array.refused}, or leave it out with --type NAME=skip")
        if not array.shape or 0 in array.shape:
            raise DataError(
                f"{path}: the array {array.name!r} has shape {array.shape}: it holds no rows"
            )
    lengths = {array.name: array.shape[0] for array in columns.values()}
    if len(set(lengths.values())) != 1:
        of_part = "" if part is None else f" of part {part!r}"
        raise DataError(
            f"{path}: the arrays{of_part} differ in their number of rows: {lengths}; name those of "
            "parts alike (all of them x_train, y_train, x_test, y_test), or take some out"
        )


def _check_alike(path: Path, parts: _Parts) -> None:
    first_part, first = next(iter(parts.items()))
    for part, columns in parts.items():
        if list(columns) != list(first):
            raise DataError(
                f"{path}: part {part!r} has the columns {list(columns)}, but part {first_part!r} "
                f"has {list(first)}: all parts need the same ones"
            )
        for name, array in columns.items():
            other = first[name]
            strings = array.is_text and other.is_text
            if array.shape[1:] != other.shape[1:] or (array.type != other.type and not strings):
                raise DataError(
                    f"{path}: the rows of {array.name!r} are {array.type} of shape "
                    f"{array.shape[1:]}, but those of {other.name!r} {other.type} of shape "
                    f"{other.shape[1:]}: all parts need the same"
                )


def _column(parts: _Parts, name: str, reading: Reading) -> Column:
    arrays = [columns[name] for columns in parts.values()]
    array = arrays[0]
    one_a_row = array.shape[1:] in ((), (1,))
    whole = array.is_text or np.dtype(array.type).kind in "iub"
    if not array.is_text and array.type not in DTYPES:
        raise DataError(
            f"{array.where} holds {array.type}, which no shard can hold; "
            f"there are bool, strings, {', '.join(DTYPES)}: convert it"
        )
    if is_label(name, reading, fits=one_a_row and whole, beside=next(iter(parts.values()))):
        if not (one_a_row and whole):
            raise DataError(
                f"{array.where} is to be the label, but its rows are {array.type} of shape "
                f"{array.shape[1:]}: labels are whole numbers or strings, one a row"
            )
        classes = () if array.is_text else _numbered(arrays)
        return Column(name=name, kind="label", dtype="int64", classes=classes)
    if array.is_text or name == reading.split_by:
        if array.shape[1:]:
            raise DataError(
                f"{array.where} holds strings or names of parts, {array.shape[1:]} a row: "
                "a row can have one"
            )
        if name in reading.types:
            raise DataError(f"{array.where} holds strings, which are no {reading.types[name]}")
        return Column(name=name, kind="text", dtype="uint8")
    dtype = reading.types.get(name, array.type)
    if name == reading.image:
        return array_column(name, dtype, array.shape[1:], reading.size)
    kind: Any = "tensor" if array.shape[1:] else "number"
    return Column(name=name, kind=kind, dtype=dtype, shape=array.shape[1:])


def _numbered(arrays: Sequence[StoredArray]) -> tuple[str, ...]:
    """The classes of whole numbers, which takes a look at all of them."""
    classes: tuple[str, ...] = ()
    for array in arrays:
        read = open_rows(array)
        for start, stop in runs(array.shape[0], array.row_bytes, BLOCK_BYTES):
            labels = read(start, stop)
            here = numbered_classes(array.where, int(labels.min()), int(labels.max()))
            classes = max(classes, here, key=len)
    return classes


def _values(
    column: Column, values: NDArray[Any], array: StoredArray, reading: Reading
) -> Values | Sequence[str]:
    if array.is_text or column.kind == "text":
        texts = _texts(values.reshape(-1), array)
        return texts if column.kind == "label" else Ragged.of_bytes([t.encode() for t in texts])
    if column.kind == "label":
        return values.reshape(-1).astype(np.int64)
    typed = as_type(values, column.dtype, array.where)
    return read_arrays(typed, column) if column.name == reading.image else typed


def _texts(values: NDArray[Any], array: StoredArray) -> list[str]:
    if values.dtype.kind != "S":
        return [str(value) for value in values.tolist()]
    try:
        return [value.decode() for value in values.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{array.where} holds bytes that are no text in UTF-8: {error}") from error


def _pieces(part: str | None, columns: Mapping[str, StoredArray]) -> Iterator[Piece]:
    arrays = list(columns.values())
    num_rows = arrays[0].shape[0]
    whole = any(array.start is None for array in arrays)
    row_bytes = 0 if whole else sum(array.row_bytes for array in arrays)
    limit = num_rows if whole else PIECE_BYTES
    files = tuple(dict.fromkeys(array.file for array in arrays))
    for start, stop in runs(num_rows, row_bytes, limit):
        yield Piece(f"{arrays[0].name} rows {start} to {stop - 1}", files, part, start, stop)
