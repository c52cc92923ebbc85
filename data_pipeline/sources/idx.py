"""IDX files, the format of MNIST: images `(N, H, W)` and the labels `(N,)` beside them."""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.sources.checks import (
    BLOCK_BYTES,
    PARTS,
    PIECE_BYTES,
    check_fixed_columns,
    entries,
    numbered_classes,
    runs,
)
from data_pipeline.sources.pictures import array_column, read_arrays
from data_pipeline.sources.source import Block, Piece, Reading

_NAME = re.compile(
    r"(?P<set>.*?)(?P<holds>images|labels)[-.]idx\d[-.](ubyte|byte|short|int|float|double)(\.gz)?",
    re.IGNORECASE,
)
_EXAMPLE = "train-images-idx3-ubyte"
_PARTS = {**PARTS, "t10k": "test"}

# http://yann.lecun.com/exdb/mnist: all numbers are big-endian.
_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_MAX_RATIO = 1032
"""https://zlib.net/zlib_tech.html: no more bytes come out of a packed one."""


def matches(path: Path) -> bool:
    """Whether it is called as IDX files are, or is a folder with such a file in it."""
    files = path.iterdir() if path.is_dir() else [path]
    return any(_NAME.fullmatch(file.name) and file.is_file() for file in files)


def open_source(path: Path, reading: Reading) -> "IdxFiles":
    """Columns `image` `(1, H, W)` and `label`, its classes being "0" to the greatest one.

    A folder has the parts that its files are called by: `train-images-idx3-ubyte` is of `train`,
    `t10k-...` or `test-...` of `test`, each with its labels file. One images file is a whole source
    without parts; its labels file is found beside it. Files may be gzipped; of a file that is there
    both ways the plain one is read.

    Raises:
        DataError: a file is missing, damaged, cut short or has bytes behind its end, is no IDX
            file, or images and labels differ in number.
    """
    check_fixed_columns(path, reading)
    pairs = [_pair(part, _header(images), _header(labels)) for part, images, labels in _files(path)]
    first = pairs[0].images
    for pair in pairs:
        found = pair.images
        if (found.dtype, found.shape[1:]) != (first.dtype, first.shape[1:]):
            raise DataError(
                f"{found.file} holds images of {np.dtype(found.dtype)} {found.shape[1:]}, but "
                f"{first.file} of {np.dtype(first.dtype)} {first.shape[1:]}: all parts need the "
                "same"
            )
    dtype = np.dtype(first.dtype).newbyteorder("=").name
    classes = max((_classes(pair.labels) for pair in pairs), key=len)
    return IdxFiles(
        pairs=tuple(pairs),
        columns=(
            array_column("image", dtype, first.shape[1:], reading.size),
            Column(name="label", kind="label", dtype="int64", classes=classes),
        ),
        pieces=tuple(piece for pair in pairs for piece in _pieces(pair)),
    )


@dataclass(frozen=True)
class _Idx:
    """A file's header; `shape` begins with the number of rows."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    packed: bool

    @property
    def header_bytes(self) -> int:
        return 4 + 4 * len(self.shape)

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        return self.header_bytes + self.shape[0] * self.row_bytes


@dataclass(frozen=True)
class _Pair:
    part: str | None
    images: _Idx
    labels: _Idx


@dataclass(frozen=True)
class IdxFiles:
    """Images and labels, a pair of files for each part."""

    pairs: tuple[_Pair, ...]
    columns: tuple[Column, ...]
    pieces: tuple[Piece, ...]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The images of a piece and their labels."""
        image, label = self.columns
        pair = next(pair for pair in self.pairs if pair.images.file == piece.files[0])
        row_bytes = max(pair.images.row_bytes, math.prod(image.shape))
        with _opened(pair.images) as images, _opened(pair.labels) as labels:
            for first, last in runs(piece.stop - piece.start, row_bytes, BLOCK_BYTES):
                start, stop = piece.start + first, piece.start + last
                rows = {
                    image.name: read_arrays(_rows(images, pair.images, start, stop), image),
                    label.name: _rows(labels, pair.labels, start, stop).astype(np.int64),
                }
                name = pair.images.file.name
                yield Block(rows, [f"{name} row {row}" for row in range(start, stop)])


def _files(path: Path) -> Iterator[tuple[str | None, Path, Path]]:
    """Part, images and labels."""
    if not path.is_dir():
        match = _NAME.fullmatch(path.name)
        if not path.is_file() or match is None or match["holds"].lower() != "images":
            raise DataError(
                f"{path} is no images file of the IDX format: give one called like {_EXAMPLE} "
                "(plain or .gz), or a folder of them"
            )
        yield None, path, _labels_of(path, match["set"], _by_name(path.parent))
        return
    found = _by_name(path)
    sets = {name for name, holds in found if holds == "images"}
    parts: dict[str | None, str] = {}
    for name in sorted(sets | {name for name, _ in found}):
        words = [word for word in re.split(r"[-._ ]", name.lower()) if word]
        part = _PARTS.get(words[-1]) if words else None
        if part in parts or (part is None and len({name for name, _ in found}) > 1):
            raise DataError(
                f"{path} holds IDX files of several data sets, or of parts that cannot be told "
                f"apart: {sorted(file.name for file in found.values())}; give a folder for each, "
                f"with files called like {_EXAMPLE} and t10k-labels-idx1-ubyte"
            )
        parts[part] = name
    if not parts:
        raise DataError(f"{path} holds no IDX file: they are called like {_EXAMPLE} (plain or .gz)")
    for part in sorted(parts, key=str):
        name = parts[part]
        if (name, "images") not in found:
            labels = found[name, "labels"]
            raise DataError(f"{labels} has no images file beside it, such as {_EXAMPLE}")
        images = found[name, "images"]
        yield part, images, _labels_of(images, name, found)


def _by_name(folder: Path) -> dict[tuple[str, str], Path]:
    """By set and by what it holds; plain files before packed ones."""
    found: dict[tuple[str, str], Path] = {}
    files = entries(folder, folder)[1]
    for file in sorted(files, key=lambda file: (file.suffix.lower() == ".gz", file.name)):
        match = _NAME.fullmatch(file.name)
        if match is None:
            continue
        key = (match["set"], match["holds"].lower())
        if key not in found:
            found[key] = file
        elif file.suffix.lower() != ".gz":
            raise DataError(f"{found[key]} and {file} are both the {key[1]} of {key[0]!r}")
    return found


def _labels_of(images: Path, name: str, found: dict[tuple[str, str], Path]) -> Path:
    if (name, "labels") not in found:
        wanted = re.sub("images", "labels", images.name, flags=re.IGNORECASE)
        wanted = re.sub(r"idx\d", "idx1", wanted, flags=re.IGNORECASE)
        raise DataError(f"{images} has no labels file beside it: {wanted} is missing")
    return found[name, "labels"]


def _pair(part: str | None, images: _Idx, labels: _Idx) -> _Pair:
    if len(images.shape) != 3 or 0 in images.shape:
        raise DataError(
            f"{images.file} holds an array of shape {images.shape}: images are (N, H, W), with a "
            "row at least"
        )
    if len(labels.shape) != 1 or np.dtype(labels.dtype).kind not in "iu":
        raise DataError(
            f"{labels.file} holds {np.dtype(labels.dtype).name} of shape {labels.shape}: labels "
            "are whole numbers of shape (N,)"
        )
    if images.shape[0] != labels.shape[0]:
        raise DataError(
            f"{images.file} holds {images.shape[0]:,} images, but {labels.file} "
            f"{labels.shape[0]:,} labels: they do not belong together, or one was cut"
        )
    return _Pair(part, images, labels)


def _classes(labels: _Idx) -> tuple[str, ...]:
    with _opened(labels) as handle:
        values = _rows(handle, labels, 0, labels.shape[0])
    return numbered_classes(str(labels.file), int(values.min()), int(values.max()))


def _header(file: Path) -> _Idx:
    with _reading(file):
        with file.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(file) if packed else file.open("rb") as handle:
            magic = handle.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not magic[3]:
                raise DataError(
                    f"{file} is no IDX file: it begins with {magic.hex(' ') or 'nothing'}, but two "
                    "zero bytes, a type (08, 09, 0b to 0e) and the number of dimensions come first"
                )
            sizes = handle.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(
            f"{file} is cut short: its header takes {4 + 4 * magic[3]} bytes, but there are "
            f"{4 + len(sizes)}"
        )
    found = _Idx(file, _DTYPES[magic[2]], struct.unpack(f">{magic[3]}I", sizes), packed)
    size_bytes = file.stat().st_size
    if not packed:
        _check_length(found, size_bytes)
    elif found.num_bytes > size_bytes * _MAX_RATIO:
        raise DataError(
            f"{file} is damaged or cut short: unpacked it takes {found.num_bytes:,} bytes, which a "
            f"packed file of {size_bytes:,} cannot hold; get the file anew"
        )
    return found


def _check_length(idx: _Idx, num_bytes: int, at_least: str = "") -> None:
    if num_bytes == idx.num_bytes:
        return
    what = "is cut short" if num_bytes < idx.num_bytes else "has bytes behind its end"
    raise DataError(
        f"{idx.file} {what}: {np.dtype(idx.dtype).name} of shape {idx.shape} takes "
        f"{idx.num_bytes:,} bytes, but there are {at_least}{num_bytes:,}; get the file anew"
    )


def _opened(idx: _Idx) -> AbstractContextManager[IO[bytes]]:
    with _reading(idx.file):
        handle: Any = (gzip.open if idx.packed else open)(idx.file, "rb")
        return closing(handle)


def _rows(handle: IO[bytes], idx: _Idx, start: int, stop: int) -> NDArray[Any]:
    """The rows [start, stop) in this machine's byte order; at the end of the file its end."""
    place = idx.header_bytes + start * idx.row_bytes
    with _reading(idx.file):
        try:
            found = handle.seek(place)
            content = handle.read((stop - start) * idx.row_bytes)
        except EOFError as error:
            raise DataError(
                f"{idx.file} is cut short: unpacked it takes {idx.num_bytes:,} bytes, but the "
                f"packed file ends before, after {idx.file.stat().st_size:,}; get the file anew"
            ) from error
        if len(content) < (stop - start) * idx.row_bytes:
            _check_length(idx, found + len(content))
        if stop == idx.shape[0] and handle.read(1):
            _check_length(idx, idx.num_bytes + 1, "at least ")
    values = np.frombuffer(content, idx.dtype).reshape(stop - start, *idx.shape[1:])
    return values.astype(values.dtype.newbyteorder("="))


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{file} is damaged, cut short or cannot be read: {error}; get the file anew"
        ) from error


def _pieces(pair: _Pair) -> Iterator[Piece]:
    images, labels = pair.images, pair.labels
    num_rows = images.shape[0]
    # What is packed can only be read from its beginning.
    limit = num_rows * images.row_bytes if images.packed else PIECE_BYTES
    for start, stop in runs(num_rows, images.row_bytes, limit):
        name = f"{images.file.name} rows {start} to {stop - 1}"
        yield Piece(name, (images.file, labels.file), pair.part, start, stop)
