"""The description of a data set: what its columns hold, its parts, and every shard's digest."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError

FILE_NAME = "manifest.json"
FORMAT_VERSION = 1

DTYPES = (
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)
"""What a shard can hold; bool is not among them, since Arrow packs it into bits."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: `shape` is that of a single row, () for a number or label.

    A `label` holds indices into `classes`, a `number` one value a row, a `tensor` a fixed shape.
    """

    name: str
    kind: Literal["tensor", "number", "label"]
    dtype: str
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()


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

    `mean` and `std` (population, float64) have one entry a feature for shapes (F,) and (T, F),
    one a channel for (C, H, W), one in all for a number, none for a label; `label_counts` has one
    entry a class.
    """

    count: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    label_counts: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole description of a data set; it stands as `manifest.json` at the folder's root."""

    name: str
    columns: tuple[Column, ...]
    parts: dict[str, Part]
    statistics: dict[str, ColumnStatistics] = field(default_factory=dict)
    version: int = FORMAT_VERSION

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
    if any(size < 1 for size in column.shape):
        raise DataError(f"column {column.name!r} has shape {column.shape}; sizes must be 1 or more")
    if bool(column.shape) != (column.kind == "tensor"):
        raise DataError(
            f"column {column.name!r} is a {column.kind} of shape {column.shape}: "
            "a tensor has a shape, a number or label has ()"
        )
    if column.kind == "label" and "int" not in column.dtype:
        raise DataError(f"column {column.name!r} is a label of {column.dtype}: give whole numbers")


@dataclass(frozen=True)
class _Versioned:
    """What every version of the format has."""

    version: int


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` into `folder`, whole or not at all."""
    encoded = msgspec.json.encode(manifest, order="deterministic")
    write_whole(folder / FILE_NAME, msgspec.json.format(encoded, indent=2) + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Reads and checks `manifest.json`.

    Raises:
        DataError: the folder or its manifest is missing, or the manifest is not a valid one.
    """
    if not folder.exists():
        raise DataError(
            f"no data set at {folder}: the folder does not exist; "
            f"`distrain data make NAME {folder}` writes one of the bundled sets there"
        )
    path = folder / FILE_NAME
    if not path.is_file():
        what = "is not a folder" if not folder.is_dir() else f"holds no {FILE_NAME}"
        raise DataError(f"no data set at {folder}: it {what}; name the folder that holds one")
    try:
        content = path.read_bytes()
        version = msgspec.json.decode(content, type=_Versioned).version
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}, this program reads {FORMAT_VERSION}: "
                "use a matching version of distrain, or write the data set anew"
            )
        manifest = msgspec.json.decode(content, type=Manifest)
    except (OSError, msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a valid manifest: {error}") from error
    _check(path, manifest)
    return manifest


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
