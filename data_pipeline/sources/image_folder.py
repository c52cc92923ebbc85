"""A folder of pictures: a folder a class, with or without folders for the parts above them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.shards import Values
from data_pipeline.sources.checks import (
    BLOCK_BYTES,
    PARTS,
    PIECE_BYTES,
    check_fixed_columns,
    entries,
)
from data_pipeline.sources.pictures import (
    SUFFIXES,
    common_channels,
    is_picture,
    picture_column,
    read_pictures,
)
from data_pipeline.sources.source import Block, Piece, Reading

PIECE_FILES = 256

_OTHER_PICTURES = (
    *(".gif", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".avif", ".heic", ".heif"),
    *(".pgm", ".ppm", ".tga", ".ico", ".svg"),
)
_LOOKED_AT = 100
"""Entries of a folder that detection looks at."""


def matches(path: Path) -> bool:
    """Whether a folder has a folder with a picture in it, or one with such a folder in it."""
    return path.is_dir() and any(
        _holds_pictures(folder, depth=2) for folder in _first(path) if folder.is_dir()
    )


def open_source(path: Path, reading: Reading) -> "ImageFolder":
    """Columns `image` and `label`; the classes are the names of the folders, sorted.

    With a folder for each part above the classes (`train`; `val`, `valid` or `validation`; `test`)
    the classes are those of `train`. Pictures are JPEG and PNG, known by their name or their first
    bytes. They are kept encoded, or with `reading.size` decoded and resized; turned by no EXIF tag.
    Hidden files are skipped, and so are files that are no pictures (lists, notes). Pictures of
    other formats are refused, so that no sample is lost in silence.

    Raises:
        DataError: there are no classes, a class has no picture, a picture lies in no class or is of
            another format, classes lie in classes, or a link leads out of the folder.
    """
    check_fixed_columns(path, reading)
    if not path.is_dir():
        raise DataError(f"{path} is no folder: give one that has a folder of pictures a class")
    parts = _parts(path)
    classes = _classes(path, parts)
    files = {
        (part, folder.name): _pictures(path, folder)
        for part, folders in parts.items()
        for folder in folders
    }
    everything = itertools.chain.from_iterable(files.values())
    channels = common_channels(_contents(everything))
    label = Column(name="label", kind="label", dtype="int64", classes=classes)
    return ImageFolder(
        root=path,
        columns=(picture_column("image", channels, reading.size), label),
        pieces=tuple(
            piece
            for part in parts
            for piece in _pieces(
                path,
                part,
                [file for (owner, _), found in files.items() if owner == part for file in found],
            )
        ),
    )


@dataclass(frozen=True)
class ImageFolder:
    """Pictures in the order of part, class and name."""

    root: Path
    columns: tuple[Column, ...]
    pieces: tuple[Piece, ...]

    def read(self, piece: Piece) -> Iterator[Block]:
        """The pictures of a piece; those that cannot be decoded are named in `Block.bad`."""
        image = self.columns[0]
        pixels = int(np.prod(image.shape)) if image.kind == "tensor" else 0
        contents: list[bytes] = []
        files: list[Path] = []
        bad: list[str] = []
        held = 0
        for file in piece.files:
            try:
                contents.append(file.read_bytes())
            except OSError as error:
                bad.append(f"{self._origin(file)}: it cannot be read: {error.strerror or error}")
                continue
            files.append(file)
            held += max(len(contents[-1]), pixels)
            if held >= BLOCK_BYTES:
                yield self._block(files, contents, bad)
                contents, files, bad, held = [], [], [], 0
        if files or bad:
            yield self._block(files, contents, bad)

    def _block(self, files: Sequence[Path], contents: Sequence[bytes], bad: list[str]) -> Block:
        image, label = self.columns
        names = [self._origin(file) for file in files]
        pictures, kept, unreadable = read_pictures(contents, names, image)
        numbers = {name: number for number, name in enumerate(label.classes)}
        labels = np.array([numbers[files[row].parent.name] for row in kept], np.int64)
        rows: dict[str, Values] = {image.name: pictures, label.name: labels}
        return Block(rows, [names[row] for row in kept], (*bad, *unreadable))

    def _origin(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()


def _first(folder: Path) -> list[Path]:
    try:
        visible = (path for path in folder.iterdir() if not path.name.startswith("."))
        return list(itertools.islice(visible, _LOOKED_AT))
    except OSError:
        return []


def _holds_pictures(folder: Path, depth: int) -> bool:
    found = _first(folder)
    if any(path.is_file() and is_picture(path) for path in found):
        return True
    below = (path for path in found if path.is_dir())
    return depth > 1 and any(_holds_pictures(path, depth - 1) for path in below)


def _parts(root: Path) -> dict[str | None, list[Path]]:
    """The folders of classes, by part; None where there are no parts."""
    folders = _only_folders(root, root)
    if not folders:
        raise DataError(
            f"{root} is empty: give a folder that has a folder of pictures (JPEG, PNG) a class"
        )
    if not all(folder.name.lower() in PARTS and entries(root, folder)[0] for folder in folders):
        return {None: folders}
    parts: dict[str | None, list[Path]] = {}
    for folder in folders:
        part = PARTS[folder.name.lower()]
        if part in parts:
            raise DataError(
                f"{folder} is one of two folders for the part {part!r}: put their classes together"
            )
        parts[part] = _only_folders(root, folder)
    return {part: parts[part] for part in sorted(parts, key=str)}


def _only_folders(root: Path, folder: Path) -> list[Path]:
    folders, files = entries(root, folder)
    for file in files:
        if is_picture(file) or file.suffix.lower() in _OTHER_PICTURES:
            raise DataError(
                f"{file} lies in no class: a picture's class is the folder it lies in; "
                "move it into one, or give a folder that has a folder a class"
            )
    return folders


def _classes(root: Path, parts: dict[str | None, list[Path]]) -> tuple[str, ...]:
    names = {part: {folder.name for folder in folders} for part, folders in parts.items()}
    classes = names["train"] if "train" in names else set().union(*names.values())
    for part, found in names.items():
        unknown = sorted(found - classes)
        if unknown:
            raise DataError(
                f"{root}: the part {part!r} has the classes {unknown}, which train lacks: a label "
                "must be one of the classes; rename the folders, or take them out"
            )
    for name in classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{root}: the folder {name!r} has a name that is not UTF-8") from error
    return tuple(sorted(classes))


def _pictures(root: Path, folder: Path) -> list[Path]:
    """The pictures of one class, by name."""
    folders, files = entries(root, folder)
    if folders:
        raise DataError(
            f"{folders[0]} lies in the folder of a class: classes are one level of folders, below "
            f"{root} or below its folders {', '.join(PARTS)}, and hold pictures only"
        )
    pictures = []
    for file in files:
        if is_picture(file):
            pictures.append(file)
        elif file.suffix.lower() in _OTHER_PICTURES:
            raise DataError(
                f"{file} is no picture that can be read: there are JPEG and PNG "
                f"({', '.join(SUFFIXES)}); convert it, or take it out"
            )
    if not pictures:
        raise DataError(
            f"{folder} holds no picture (JPEG, PNG), but it is the folder of a class: "
            "fill it, or take it out"
        )
    return pictures


def _contents(files: Iterator[Path]) -> Iterator[bytes]:
    for file in files:
        try:
            yield file.read_bytes()
        except OSError:
            continue  # named when its piece is read


def _pieces(root: Path, part: str | None, files: Sequence[Path]) -> Iterator[Piece]:
    start, held = 0, 0
    for number, file in enumerate(files):
        size = file.stat().st_size
        if number > start and (number - start == PIECE_FILES or held + size > PIECE_BYTES):
            yield _piece(root, part, files, start, number)
            start, held = number, 0
        held += size
    yield _piece(root, part, files, start, len(files))


def _piece(root: Path, part: str | None, files: Sequence[Path], start: int, stop: int) -> Piece:
    first = files[start].relative_to(root).as_posix()
    name = first if stop - start == 1 else f"{first} and the {stop - start - 1} behind it"
    return Piece(name, tuple(files[start:stop]), part, start, stop)
