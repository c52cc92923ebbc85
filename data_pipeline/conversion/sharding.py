"""The second pass: rows are gathered from the staged pieces and written as shards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from data_pipeline.conversion.staging import StagedRows, joined, staged_column
from data_pipeline.durable import fsync_folder, write_whole
from data_pipeline.errors import StorageError
from data_pipeline.manifest import Column, Shard
from data_pipeline.shards import Values, write_shard
from data_pipeline.statistics import Moments, moments


@dataclass(frozen=True)
class Sharding:
    """What every process of the second pass is told.

    Attributes:
        staged: Where the staged pieces are.
        root: The data set's folder to be.
        marks: Where it is noted which shards are finished.
        columns: The columns of the data set.
        names: By column and piece, of labels without classes beforehand: the class of each of the
            piece's own numbers.
        missing_allowed: Whether NaN is let through.
    """

    staged: Path
    root: Path
    marks: Path
    columns: tuple[Column, ...]
    names: dict[str, list[NDArray[np.int64]]]
    missing_allowed: bool


@dataclass(frozen=True)
class ShardTask:
    """One shard: its part and path, the rows of each piece in it, whether they are summed up."""

    part: str
    path: str
    rows: tuple[tuple[int, NDArray[np.int64]], ...]
    summed_up: bool


@dataclass(frozen=True)
class _Mark:
    """What is kept of a finished shard; floats as hexadecimal digits, infinity included."""

    shard: Shard
    moments: list[list[list[str]]]


def write_one_shard(sharding: Sharding, task: ShardTask) -> tuple[Shard, tuple[Moments, ...]]:
    """Writes a shard, unless that was done before; gives the moments of its columns as well.

    Raises:
        DataError: a picture cannot be decoded.
        StorageError: the folder cannot be written.
    """
    mark = sharding.marks / f"{task.path}.json"
    if mark.exists():
        found = msgspec.json.decode(mark.read_bytes(), type=_Mark)
        if _is_whole(sharding.root / task.path, found.shard):
            return found.shard, tuple(_unpacked(entry) for entry in found.moments)
    rows = _gathered(sharding, task)
    aside = f"{task.path}.{os.getpid()}.partial"
    try:
        written = write_shard(sharding.root, aside, sharding.columns, rows)
        (sharding.root / aside).replace(sharding.root / task.path)
        fsync_folder((sharding.root / task.path).parent)  # the mark must not outlive the shard
    except OSError as error:
        raise StorageError(
            f"cannot write {sharding.root / task.path}: {error.strerror or error}"
        ) from error
    finally:
        with suppress(OSError):
            (sharding.root / aside).unlink(missing_ok=True)
    shard = replace(written, path=task.path)
    summed: tuple[Moments, ...] = ()
    if task.summed_up:
        summed = tuple(
            moments(column, rows[column.name], missing_allowed=sharding.missing_allowed)
            for column in sharding.columns
        )
    content = msgspec.json.encode(_Mark(shard, [_packed(entry) for entry in summed]))
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {mark}: {error.strerror or error}") from error
    write_whole(mark, content)
    return shard, summed


def _is_whole(file: Path, shard: Shard) -> bool:
    """Whether what a mark speaks of is there: a power cut may have taken it."""
    try:
        return file.stat().st_size == shard.size_bytes
    except FileNotFoundError:
        return False


@lru_cache(maxsize=8)
def _opened(folder: Path, number: int, columns: tuple[Column, ...]) -> StagedRows:
    return StagedRows(folder, number, columns)


@contextmanager
def fresh_maps() -> Iterator[None]:
    """Maps of staged files are kept within the block alone: their names will be others' as well."""
    _opened.cache_clear()
    try:
        yield
    finally:
        _opened.cache_clear()


def _gathered(sharding: Sharding, task: ShardTask) -> dict[str, Values]:
    columns = tuple(staged_column(n, column) for n, column in enumerate(sharding.columns))
    found: dict[str, list[Values]] = {column.name: [] for column in sharding.columns}
    for number, rows in task.rows:
        piece = _opened(sharding.staged, number, columns)
        for staged, column in zip(columns, sharding.columns, strict=True):
            taken = piece.take(staged.name, rows)
            if column.name in sharding.names:
                classes = sharding.names[column.name][number]
                taken = [classes[block] for block in taken if isinstance(block, np.ndarray)]
            found[column.name].extend(taken)
    return {name: joined(values) for name, values in found.items()}


_FLOATS = ("mean", "m2", "least", "greatest")
_WHOLE = ("count", "label_counts")


def _packed(entry: Moments) -> list[list[str]]:
    floats = [[value.hex() for value in getattr(entry, name).tolist()] for name in _FLOATS]
    whole = [[str(value) for value in getattr(entry, name).tolist()] for name in _WHOLE]
    return [*floats, *whole, [str(entry.rows), str(entry.missing)]]


def _unpacked(packed: list[list[str]]) -> Moments:
    floats = {
        name: np.array([float.fromhex(value) for value in values], np.float64)
        for name, values in zip(_FLOATS, packed, strict=False)
    }
    whole = {
        name: np.array([int(value) for value in values], np.int64)
        for name, values in zip(_WHOLE, packed[len(_FLOATS) :], strict=False)
    }
    rows, missing = map(int, packed[-1])
    everything: dict[str, Any] = {**floats, **whole}
    return Moments(rows=rows, missing=missing, **everything)
