"""The description of a data set: what its columns hold, its parts, and every shard's digest."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError

FILE_NAME = "manifest.json"
FORMAT_VERSION = 2

_MOST_VALUES = 2**31 - 1

_BLANK_SEAL = "0" * 64
_SEAL_KEY = b'"sha256": "'

DTYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""What a shard can hold; bool is not among them, since Arrow packs it into bits."""


Kind = Literal["tensor", "number", "label", "image", "sequence", "text"]

RAGGED_KINDS = ("image", "sequence", "text")
"""Kinds whose rows differ in length."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. What its kind says of a row, and of `dtype` and `shape`:

    - `number`: one value; shape ().
    - `label`: an index into `classes`; shape ().
    - `tensor`: a fixed shape, such as (C, H, W) of a picture.
    - `image`: an encoded picture (JPEG, PNG); dtype uint8, shape (channels,), any height and width.
    - `sequence`: any number of steps, of shape `shape` each.
    - `text`: UTF-8; dtype uint8, shape ().

    `max_length` is that of the longest sequence or text (in bytes) of all parts: batches are
    padded to it, so that a batch's shape depends on nothing but the data set.
    """

    name: str
    kind: Kind
    dtype: str
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    max_length: int = 0

    @property
    def is_ragged(self) -> bool:
        """Whether rows differ in length."""
        return self.kind in RAGGED_KINDS


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Arrow IPC file, its path relative to the data set's folder."""

    path: str
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A named part (`train`, `validation`, `test`): its shards, in order."""

    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """The rows of all shards together."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class ColumnStatistics:
    """What the training part says of a column.

    `mean`, `std` (population, float64), `least` and `greatest` have one entry a feature for shapes
    (F,) and (T, F) and for the steps of sequences, one a channel for (C, H, W) and encoded
    pictures, one in all for a number, none for a label or text; `label_counts` has one entry a
    class. `count` is that of rows; `missing` counts values that are NaN, which no other entry
    takes part in.
    """

    count: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    least: tuple[float, ...] = ()
    greatest: tuple[float, ...] = ()
    label_counts: tuple[int, ...] = ()
    missing: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole description of a data set; it stands as `manifest.json` at the folder's root."""

    name: str
    columns: tuple[Column, ...]
    parts: dict[str, Part]
    statistics: dict[str, ColumnStatistics] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over the description, and so, through the shards' digests, over the data."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()


def check_column(column: Column) -> None:
    """Refuses a column that no shard can hold.

    Raises:
        DataError: its dtype is none of `DTYPES`, its shape has a size below 1, or dtype or shape
            do not go with its kind.
    """
    if column.dtype not in DTYPES:
        raise DataError(
            f"column {column.name!r} has dtype {column.dtype!r}; shards hold {', '.join(DTYPES)}"
        )
    if not column.name:
        raise DataError("a column has no name: give every column one")
    if math.prod(column.shape) > _MOST_VALUES:
        raise DataError(
            f"column {column.name!r} has rows of shape {column.shape}, more than the "
            f"{_MOST_VALUES:,} values that Arrow keeps in one: make them smaller"
        )
    if any(size < 1 for size in column.shape):
        raise DataError(f"column {column.name!r} has shape {column.shape}; sizes must be 1 or more")
    if column.kind != "sequence" and bool(column.shape) != (column.kind in ("tensor", "image")):
        raise DataError(
            f"column {column.name!r} is a {column.kind} of shape {column.shape}: "
            "a tensor has a shape, a number, label or text has ()"
        )
    if column.kind == "image" and column.shape not in ((1,), (3,)):
        raise DataError(
            f"column {column.name!r} holds pictures of {column.shape} channels: (1,) or (3,) go"
        )
    if column.kind in ("image", "text") and column.dtype != "uint8":
        raise DataError(f"column {column.name!r} is {column.kind} of {column.dtype}: give uint8")
    if column.kind == "label" and "int" not in column.dtype:
        raise DataError(f"column {column.name!r} is a label of {column.dtype}: give whole numbers")


@dataclass(frozen=True)
class _Versioned:
    """What every version of the format has."""

    version: int


@dataclass(frozen=True, kw_only=True)
class _Sealed:
    """What stands in the file: the description, and the SHA-256 of the file's own bytes.

    The bytes are those with the seal itself blank, so that a change of any of them is found, and
    so that another version of the JSON library may lay the text out as it likes.
    """

    manifest: Manifest
    sha256: str = _BLANK_SEAL
    version: int = FORMAT_VERSION


def _sealed(manifest: Manifest) -> bytes:
    blank = msgspec.json.encode(_Sealed(manifest=manifest), order="deterministic")
    text = msgspec.json.format(blank, indent=2) + b"\n"
    return _with_seal(text, hashlib.sha256(text).hexdigest())


def _with_seal(text: bytes, seal: str) -> bytes:
    """The seal is the last but one entry of the file, whatever names the manifest holds."""
    start = text.rindex(_SEAL_KEY) + len(_SEAL_KEY)
    return text[:start] + seal.encode() + text[start + len(seal) :]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into `folder`, whole or not at all."""
    write_whole(folder / FILE_NAME, _sealed(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks `manifest.json`: any byte of it that was changed is found.

    Raises:
        DataError: the folder or its manifest is missing, or the manifest is not a valid one.
    """
    path = folder / FILE_NAME
    try:
        _refuse_missing(folder)
    except OSError as error:
        raise DataError(f"the data set at {folder} can't be read: {error.strerror}") from error
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=_Versioned).version
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, this program reads {FORMAT_VERSION}: "
                "use a matching version of distrain, or write the data set anew"
            )
        sealed = msgspec.json.decode(content, type=_Sealed)
        whole = hashlib.sha256(_with_seal(content, _BLANK_SEAL)).hexdigest() == sealed.sha256
    except (OSError, msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise DataError(f"{path} is not a valid manifest: {error}") from error
    if not whole:
        raise DataError(
            f"{path} was changed after it was written, or is damaged: its bytes are not those that "
            "its own SHA-256 was taken of; restore the file, or write the data set anew"
        )
    _check(path, sealed.manifest)
    return sealed.manifest


def _refuse_missing(folder: Path) -> None:
    if not folder.exists():
        raise DataError(
            f"no data set at {folder}: the folder does not exist; "
            f"`distrain data convert SRC {folder}` makes one of files, and "
            f"`distrain data make NAME {folder}` writes a bundled one"
        )
    if not (folder / FILE_NAME).is_file():
        what = "is not a folder" if not folder.is_dir() else f"holds no {FILE_NAME}"
        raise DataError(f"no data set at {folder}: it {what}; name the folder that holds one")


def _check(path: Path, manifest: Manifest) -> None:
    names = [column.name for column in manifest.columns]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: column names are not unique: {names}")
    for column in manifest.columns:
        try:
            check_column(column)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    for name, part in manifest.parts.items():
        for shard in part.shards:
            inside = PurePosixPath(shard.path)
            if inside.is_absolute() or ".." in inside.parts:
                raise DataError(f"{path}: part {name}: shard path {shard.path!r} leaves the folder")
            if shard.rows < 0 or shard.size_bytes < 0:
                raise DataError(f"{path}: part {name}: shard {shard.path!r} has a negative size")
