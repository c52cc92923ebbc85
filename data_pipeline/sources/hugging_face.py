"""A folder that `save_to_disk` of Hugging Face's `datasets` wrote, read without that library."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values
from data_pipeline.sources import features as arrow
from data_pipeline.sources.checks import (
    BLOCK_BYTES,
    PIECE_BYTES,
    check_inside,
    check_named_columns,
    numbered_classes,
    runs,
    stack_columns,
    stack_rows,
    stacks,
)
from data_pipeline.sources.features import Feature, parse_feature, plain_column, rows_of
from data_pipeline.sources.pictures import (
    common_channels,
    picture_column,
    read_pictures,
)
from data_pipeline.sources.source import Block, Piece, Reading

DICT_FILE, STATE_FILE, INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def matches(path: Path) -> bool:
    """Whether it is a folder with the files that describe a saved data set, or several."""
    return (path / DICT_FILE).is_file() or all(
        (path / name).is_file() for name in (STATE_FILE, INFO_FILE)
    )


def open_source(path: Path, reading: Reading) -> "HuggingFace":
    """A column for each feature: `Value` (numbers, bool as uint8, strings), `ClassLabel`, `Image`,
    `Array2D` to `Array5D`, and lists of numbers, those of any length as sequences.

    The splits of a `DatasetDict` are the parts. A `ClassLabel` is a label; without one a column is,
    if `reading` names it, or if it is called `label`, `labels` or `y` and holds whole numbers or
    strings. Pictures stay encoded, or are decoded and resized with `reading.size`; one that is
    only a path is read if it lies inside the folder. What `set_format` hid is read as well.

    Raises:
        DataError: a file is missing, damaged or cut short, or a feature is none of these.
    """
    splits = _splits(path)
    described = [_features(folder) for folder in splits.values()]
    for split, found in zip(splits, described, strict=True):
        if found != described[0]:
            raise DataError(
                f"{path}: split {split!r} has other features than {next(iter(splits))!r}: all "
                "parts need the same"
            )
    check_named_columns(path, reading, described[0])
    kept = {key: of for key, of in described[0].items() if reading.types.get(key) != "skip"}
    if not kept:
        raise DataError(f"{path}: every column is left out by --type NAME=skip")
    try:
        features = [parse_feature(*item, reading) for item in kept.items()]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: its features are not described as they should be: {error!r}"
        ) from error
    files = tuple(file for split, folder in splits.items() for file in _files(path, split, folder))
    _check_schema(files, features)
    try:
        columns = tuple(_column(path, files, feature, reading) for feature in features)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if reading.size is not None and not any(
        feature.kind == "picture" or feature.name == reading.image for feature in features
    ):
        raise DataError(
            f"{path}: a size is given, but no column of {list(kept)} is one of pictures"
        )
    stack = stacks(path, columns, reading)
    return HuggingFace(
        root=path,
        reading=reading,
        files=files,
        features=tuple(features),
        plain=columns,
        stack=stack,
        columns=stack_columns(columns, stack),
        pieces=tuple(piece for file in files for piece in file.pieces(path)),
    )


@dataclass(frozen=True)
class _File:
    """One Arrow stream, and which rows of its split it holds."""

    file: Path
    part: str | None
    first_row: int
    num_rows: int
    size_bytes: int

    def pieces(self, root: Path) -> Iterator[Piece]:
        name = self.file.relative_to(root).as_posix()
        for start, stop in runs(self.num_rows, self.size_bytes / self.num_rows, PIECE_BYTES):
            yield Piece(f"{name} rows {start} to {stop - 1}", (self.file,), self.part, start, stop)


@dataclass(frozen=True)
class HuggingFace:
    """The rows of a saved data set; `plain` are its columns before any are stacked."""

    root: Path
    reading: Reading
    files: tuple[_File, ...]
    features: tuple[Feature, ...]
    plain: tuple[Column, ...]
    stack: Mapping[str, tuple[str, ...]]
    columns: tuple[Column, ...]
    pieces: tuple[Piece, ...]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece; those with a picture that cannot be decoded go to `Block.bad`."""
        file = next(file for file in self.files if file.file == piece.files[0])
        made = sum(int(np.prod(c.shape)) for c in self.columns if c.kind == "tensor")
        row_bytes = max(file.size_bytes / file.num_rows, made)
        start = 0
        for batch in _batches(file.file):
            first = max(piece.start - start, 0)
            last = min(piece.stop - start, batch.num_rows)
            for begin, end in runs(max(last - first, 0), row_bytes, BLOCK_BYTES):
                row = start + first + begin
                yield self._block(file, batch.slice(first + begin, end - begin), row)
            start += batch.num_rows
            if start >= piece.stop:
                return

    def named_files(self) -> Iterator[Path]:
        """The pictures that rows name by path.

        Raises:
            DataError: one lies outside of the data set.
        """
        for feature in self.features:
            if feature.kind == "picture":
                for file in self.files:
                    yield from _named_files(self.root, file, feature.name)

    def _block(self, file: _File, batch: pa.RecordBatch, row: int) -> Block:
        with _reading(file.file):
            batch.validate(full=True)
        split = "" if file.part is None else f"{file.part} "
        first = file.first_row + row
        origins = [f"{split}row {number}" for number in range(first, first + batch.num_rows)]
        found = {f.name: arrow.storage(batch.column(f.name)) for f in self.features}
        rows: dict[str, Values | Sequence[str]] = {}
        bad: list[str] = []
        for feature, column in zip(self.features, self.plain, strict=True):
            if feature.kind != "picture":
                continue
            with _reading(file.file):
                contents = found[feature.name].to_pylist()
            encoded = [
                _encoded(self.root, file.file.parent, picture, origin)
                for picture, origin in zip(contents, origins, strict=True)
            ]
            pictures, kept, wrong = read_pictures(encoded, origins, column)
            bad.extend(wrong)
            if wrong:
                rows = {name: _taken(values, kept) for name, values in rows.items()}
                found = {
                    name: array.take(pa.array(kept, pa.int64())) for name, array in found.items()
                }
                origins = [origins[number] for number in kept]
            rows[feature.name] = pictures
        for feature, column in zip(self.features, self.plain, strict=True):
            if feature.kind != "picture":
                rows[feature.name] = self._values(feature, column, found[feature.name], origins)
        return Block(stack_rows(rows, self.columns, self.stack), origins, tuple(bad))

    def _values(
        self, feature: Feature, column: Column, array: pa.Array, origins: Sequence[str]
    ) -> Values | Sequence[str]:
        try:
            return rows_of(feature, column, array, self.reading)
        except DataError:
            for number, origin in enumerate(origins):
                try:
                    rows_of(feature, column, array.slice(number, 1), self.reading)
                except DataError as error:
                    raise DataError(
                        f"{self.root}: {origin}, column {feature.name!r}: {error}"
                    ) from error
            raise


def _splits(path: Path) -> dict[str | None, Path]:
    if (path / DICT_FILE).is_file():
        splits = _json(path / DICT_FILE).get("splits")
        if not isinstance(splits, list) or not splits:
            raise DataError(f"{path / DICT_FILE} names no splits: save the data set anew")
        found: dict[str | None, Path] = {str(split): path / str(split) for split in splits}
    else:
        found = {None: path}
    for folder in found.values():
        for name in (STATE_FILE, INFO_FILE):
            if not (folder / name).is_file():
                raise DataError(
                    f"{folder} holds no {name}: give a folder that `save_to_disk` wrote"
                )
        check_inside(path, folder)
    return found


def _features(folder: Path) -> Mapping[str, Any]:
    features = _json(folder / INFO_FILE).get("features")
    if not isinstance(features, dict) or not features:
        raise DataError(f"{folder / INFO_FILE} describes no features: save the data set anew")
    return features


def _json(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is no description of a data set: save the data set anew")
    return content


def _files(root: Path, split: str | None, folder: Path) -> Iterator[_File]:
    state = _json(folder / STATE_FILE)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} picks its rows by indices, as older versions of `datasets` could save it: "
            "load it and save it anew"
        )
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / STATE_FILE} lists no data files: save it anew") from error
    first_row = 0
    for name in names:
        file = folder / name
        check_inside(root, file)
        num_rows = sum(batch.num_rows for batch in _batches(file))
        if num_rows:
            yield _File(file, split, first_row, num_rows, file.stat().st_size)
        first_row += num_rows
    if not first_row:
        what = "" if split is None else f"split {split!r} of "
        raise DataError(f"{what}{root} has no rows: take it out")


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of a stream, memory-mapped: what is not looked at is not read."""
    with _reading(file):
        with file.open("rb") as handle:
            handle.seek(max(file.stat().st_size - len(_END_OF_STREAM), 0))
            if handle.read() != _END_OF_STREAM:
                raise DataError(f"{file} is cut short: its end is missing; save the data set anew")
        source = pa.memory_map(str(file))
    with source:
        with _reading(file):
            reader = pa.ipc.open_stream(source)
        while True:
            with _reading(file):
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
                # Lengths out of a damaged header would end the process.
                if batch.num_rows < 0:
                    raise DataError(f"{file} is damaged: it has a batch of {batch.num_rows} rows")
                batch.validate()
            yield batch


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise DataError(f"{file} is damaged or cannot be read: {error}") from error


def _check_schema(files: Sequence[_File], features: Sequence[Feature]) -> None:
    for file in files:
        with _reading(file.file):
            names = next(_batches(file.file)).schema.names
        for feature in features:
            if names.count(feature.name) != 1:
                raise DataError(f"{file.file} has the columns {names}, not one {feature.name!r}")


def _column(path: Path, files: Sequence[_File], feature: Feature, reading: Reading) -> Column:
    """What only the rows can tell, such as the greatest label, is looked up in them."""
    name = feature.name
    if feature.is_label(reading):
        classes = _numbered(files, name) if feature.is_whole else feature.classes
        return Column(name=name, kind="label", dtype="int64", classes=classes)
    if feature.kind == "picture":
        pictures = (picture for file in files for picture in _all_encoded(path, file, name))
        return picture_column(name, common_channels(pictures), reading.size)
    column = plain_column(feature, reading)
    may_be_nan = reading.missing == "keep" and column.kind == "number" and feature.is_whole
    if may_be_nan and name not in reading.types and _has_nulls(files, name):
        return replace(column, dtype="float64")
    return column


def _numbered(files: Sequence[_File], name: str) -> tuple[str, ...]:
    classes: tuple[str, ...] = ()
    for file in files:
        for batch in _batches(file.file):
            ends = pc.min_max(batch.column(name)).as_py()
            if ends["min"] is not None:
                least, greatest = int(ends["min"]), int(ends["max"])
                here = numbered_classes(f"column {name!r}", least, greatest)
                classes = max(classes, here, key=len)
    if not classes:
        raise DataError(f"column {name!r} is to be the label, but holds no value at all")
    return classes


def _has_nulls(files: Sequence[_File], name: str) -> bool:
    return any(batch.column(name).null_count for f in files for batch in _batches(f.file))


def _all_encoded(root: Path, file: _File, name: str) -> Iterator[bytes]:
    for batch in _batches(file.file):
        array = arrow.storage(batch.column(name))
        with _reading(file.file):
            array.validate(full=True)
        for row in range(len(array)):
            with _reading(file.file):
                content = array[row].as_py()
            picture = _encoded(root, file.file.parent, content, f"row {row}")
            if isinstance(picture, bytes):
                yield picture


def _encoded(root: Path, folder: Path, picture: Any, origin: str) -> bytes | DataError:
    """A picture's bytes, from the row or from the file that the row names."""
    if isinstance(picture, Mapping) and picture.get("bytes") is None and picture.get("path"):
        file = _named_file(root, folder, str(picture["path"]), origin)
        try:
            return file.read_bytes()
        except OSError as error:
            return DataError(f"the picture {file} cannot be read: {error.strerror or error}")
    content = picture.get("bytes") if isinstance(picture, Mapping) else picture
    return content if isinstance(content, bytes) else DataError("the picture is missing")


def _named_file(root: Path, folder: Path, path: str, origin: str) -> Path:
    file = folder / path
    try:
        check_inside(root, file, must_exist=False)
    except DataError as error:
        raise DataError(f"{root}: {origin}: {error}") from error
    return file


def _named_files(root: Path, file: _File, name: str) -> Iterator[Path]:
    first = 0
    for batch in _batches(file.file):
        array = arrow.storage(batch.column(name))
        if pa.types.is_struct(array.type) and {"bytes", "path"} <= {of.name for of in array.type}:
            with _reading(file.file):
                array.validate(full=True)
                is_path = pc.is_null(pc.struct_field(array, "bytes"))
                paths = pc.if_else(is_path, pc.struct_field(array, "path"), None).to_pylist()
            for row, path in enumerate(paths, start=first):
                if path:
                    yield _named_file(root, file.file.parent, path, f"row {row}")
        first += batch.num_rows


def _taken(values: Values | Sequence[str], kept: Sequence[int]) -> Values | Sequence[str]:
    if isinstance(values, (np.ndarray, Ragged)):
        rows = np.array(kept, np.int64)
        return values.take(rows) if isinstance(values, Ragged) else values[rows]
    return [values[number] for number in kept]
