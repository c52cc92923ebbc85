"""CIFAR-10 and CIFAR-100 in their binary versions: records of labels and 3 x 32 x 32 bytes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.sources.checks import (
    BLOCK_BYTES,
    PIECE_BYTES,
    check_fixed_columns,
    entries,
    runs,
)
from data_pipeline.sources.pictures import array_column, read_arrays
from data_pipeline.sources.source import Block, Piece, Reading

IMAGE_SHAPE = (3, 32, 32)
_IMAGE_BYTES = 3 * 32 * 32
_BATCH = re.compile(r"data_batch_(\d+)\.bin")

_CIFAR_10 = {"label": "batches.meta.txt"}
_CIFAR_100 = {"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"}
"""https://www.cs.toronto.edu/~kriz/cifar.html: the bytes before an image, and their names' file."""


def matches(path: Path) -> bool:
    """Whether it is a folder with files called as those of CIFAR-10 or CIFAR-100."""
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir()}
    ten = {"batches.meta.txt", "test_batch.bin"} & names or any(map(_BATCH.fullmatch, names))
    hundred = {"fine_label_names.txt", "coarse_label_names.txt"} & names
    return bool(ten or (hundred and {"train.bin", "test.bin"} & names))


def open_source(path: Path, reading: Reading) -> "Cifar":
    """Columns `image` `(3, 32, 32)` and `label`, for CIFAR-100 `coarse_label` too.

    The parts are `train` (all of `data_batch_1.bin`, ... or `train.bin`) and `test`; either may be
    missing as a whole. The classes are those of the files of names.

    Raises:
        DataError: a batch or the names are missing, a file is not made of whole records.
    """
    if not path.is_dir():
        raise DataError(f"{path} is no folder: give the one that the CIFAR archive unpacks to")
    files = {file.name: file for file in entries(path, path)[1]}
    batches = sorted((int(match[1]), name) for name in files if (match := _BATCH.fullmatch(name)))
    is_hundred = not batches and "test_batch.bin" not in files
    if not is_hundred and {"train.bin", "test.bin"} & set(files):
        raise DataError(f"{path} holds files of both CIFAR-10 and CIFAR-100: give a folder for one")
    _check_batches(path, [number for number, _ in batches])
    labels = _CIFAR_100 if is_hundred else _CIFAR_10
    check_fixed_columns(path, reading, tuple(reversed(labels)))
    names = {
        "test": ["test.bin" if is_hundred else "test_batch.bin"],
        "train": ["train.bin"] if is_hundred else [name for _, name in batches],
    }
    found = {
        part: [files[name] for name in called if name in files] for part, called in names.items()
    }
    if not any(found.values()):
        raise DataError(
            f"{path} holds no file of CIFAR-10 (data_batch_1.bin, test_batch.bin) or CIFAR-100 "
            "(train.bin, test.bin): give the folder that the archive of the binary version "
            "unpacks to"
        )
    columns = [_label(path, files, name, called) for name, called in labels.items()]
    image = array_column("image", "uint8", (*IMAGE_SHAPE[1:], IMAGE_SHAPE[0]), reading.size)
    return Cifar(
        columns=(image, *reversed(columns)),
        pieces=tuple(
            piece
            for part, of_part in found.items()
            for file in of_part
            for piece in _pieces(part, file, len(labels) + _IMAGE_BYTES)
        ),
    )


@dataclass(frozen=True)
class Cifar:
    """The records of one of the two data sets; a record begins with its labels, coarse first."""

    columns: tuple[Column, ...]
    pieces: tuple[Piece, ...]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The records of a piece; each label must be that of a class."""
        image, *labels = self.columns
        record_bytes = len(labels) + _IMAGE_BYTES
        file = piece.files[0]
        row_bytes = max(record_bytes, int(np.prod(image.shape)))
        for first, last in runs(piece.stop - piece.start, row_bytes, BLOCK_BYTES):
            start, stop = piece.start + first, piece.start + last
            records = _records(file, start, stop, record_bytes)
            pixels = records[:, len(labels) :].reshape(-1, *IMAGE_SHAPE).transpose(0, 2, 3, 1)
            rows: dict[str, NDArray[np.generic]] = {image.name: read_arrays(pixels, image)}
            for place, label in enumerate(reversed(labels)):
                _check_labels(file, start, records[:, place], label)
                rows[label.name] = records[:, place].astype(np.int64)
            yield Block(rows, [f"{file.name} record {row}" for row in range(start, stop)])


def _check_batches(path: Path, numbers: Sequence[int]) -> None:
    missing = sorted(set(range(1, max(numbers, default=0) + 1)) - set(numbers))
    if missing:
        raise DataError(
            f"{path} holds the batches {list(numbers)}, but data_batch_{missing[0]}.bin is "
            "missing: unpack the archive anew"
        )


def _label(path: Path, files: Mapping[str, Path], name: str, called: str) -> Column:
    if called not in files:
        raise DataError(f"{path} lacks {called}, which holds the names of the classes")
    try:
        lines = files[called].read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{files[called]} cannot be read: {error}") from error
    classes = tuple(line.strip() for line in lines if line.strip())
    if not classes or len(set(classes)) != len(classes):
        raise DataError(f"{files[called]} must name each class once, a line each: {list(classes)}")
    return Column(name=name, kind="label", dtype="int64", classes=classes)


def _pieces(part: str, file: Path, record_bytes: int) -> Iterator[Piece]:
    size = file.stat().st_size
    num_records, rest = divmod(size, record_bytes)
    if not size:
        raise DataError(f"{file} is empty: get the file anew")
    if rest:
        raise DataError(
            f"{file} has {size:,} bytes, which is {num_records} records of {record_bytes:,} bytes "
            f"and {rest:,} bytes of record {num_records}: get the file anew"
        )
    for start, stop in runs(num_records, record_bytes, PIECE_BYTES):
        yield Piece(f"{file.name} records {start} to {stop - 1}", (file,), part, start, stop)


def _records(file: Path, start: int, stop: int, record_bytes: int) -> NDArray[np.uint8]:
    try:
        with file.open("rb") as handle:
            handle.seek(start * record_bytes)
            content = handle.read((stop - start) * record_bytes)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(content) < (stop - start) * record_bytes:
        raise DataError(f"{file} has become shorter while it was read: record {stop - 1} is gone")
    return np.frombuffer(content, np.uint8).reshape(stop - start, record_bytes)


def _check_labels(file: Path, start: int, values: NDArray[np.uint8], label: Column) -> None:
    outside = np.flatnonzero(values >= len(label.classes))
    if outside.size:
        row = int(outside[0])
        raise DataError(
            f"{file} record {start + row} has the {label.name} {values[row]}, but there are "
            f"{len(label.classes)} classes, numbered from 0: the file is damaged, or names are "
            "missing"
        )
