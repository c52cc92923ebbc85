"""All rows of a source, and of the data set that is made of it."""

import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline import Dataset
from data_pipeline.conversion.convert import convert
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import check_rows
from data_pipeline.sources.detect import open_source
from data_pipeline.sources.source import Reading, Source


@dataclass
class Rows:
    """The rows of a part, a list for each column: arrays, bytes of pictures, strings."""

    values: dict[str, list[Any]] = field(default_factory=dict)
    origins: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def array(self, name: str) -> NDArray[Any]:
        return np.stack(self.values[name])


def read_back(source: Source) -> dict[str | None, Rows]:
    """By part; the source is pickled before, as it is for other processes."""
    source = pickle.loads(pickle.dumps(source))
    names = [piece.name for piece in source.pieces]
    assert len(set(names)) == len(names)
    parts: dict[str | None, Rows] = {}
    for piece in source.pieces:
        rows = parts.setdefault(piece.part, Rows())
        for block in source.read(piece):
            rows.origins.extend(block.origins)
            rows.bad.extend(block.bad)
            assert sorted(block.rows) == sorted(column.name for column in source.columns)
            for column in source.columns:
                values = block.rows[column.name]
                assert len(values) == len(block.origins)
                if isinstance(values, (np.ndarray, Ragged)):
                    check_rows(column, values)
                rows.values.setdefault(column.name, []).extend(_listed(column, values))
    return parts


def only_part(source: Source) -> Rows:
    """The rows of a source without parts."""
    parts = read_back(source)
    assert list(parts) == [None]
    return parts[None]


def _listed(column: Column, values: Any) -> list[Any]:
    if not isinstance(values, Ragged):
        return list(values)
    rows = [values.row(row) for row in range(len(values))]
    if column.kind == "sequence":
        return rows
    return [row.tobytes().decode() if column.kind == "text" else row.tobytes() for row in rows]


def check_converted(
    path: Path, folder: Path, reading: Reading, *, workers: int = 1, skip_bad: int = 0
) -> Source:
    """Converts what is at `path`, and compares the data set with what the source gives."""
    source = open_source(path, reading)
    convert(path, folder, reading=reading, workers=workers, skip_bad=skip_bad)
    for part, rows in read_back(source).items():
        dataset = Dataset(folder, part or "train")
        assert len(dataset) == len(rows.origins)
        for column in source.columns:
            expected = rows.values[column.name]
            if column.kind == "label" and not column.classes:
                classes = dataset.column(column.name).classes
                expected = [classes.index(str(name)) for name in expected]
            for found, wanted in zip(_all_of(dataset, column.name), expected, strict=True):
                if isinstance(wanted, np.ndarray):
                    np.testing.assert_array_equal(found, wanted)
                else:
                    assert found == wanted
    return source


def _all_of(dataset: Dataset, name: str) -> list[Any]:
    column, rows = dataset.column(name), np.arange(len(dataset))
    if column.kind == "image":
        return [bytes(content) for content in dataset.encoded(name, rows)]
    if not column.is_ragged:
        out = np.empty((len(rows), *column.shape), column.dtype)
        dataset.gather(name, rows, out)
        return list(out)
    padded = np.empty((len(rows), column.max_length, *column.shape), column.dtype)
    lengths = np.empty(len(rows), np.int64)
    dataset.gather_padded(name, rows, padded, lengths)
    cut = [row[:length] for row, length in zip(padded, lengths, strict=True)]
    return [row.tobytes().decode() for row in cut] if column.kind == "text" else cut


def column_of(folder: Path, name: str, part: str = "train") -> list[Any]:
    """The rows of a column of a data set: texts as strings, labels as numbers."""
    dataset = Dataset(folder, part)
    described, rows = dataset.column(name), np.arange(len(dataset))
    if described.kind == "text":
        return [value.tobytes().decode() for value in dataset.encoded(name, rows)]
    if described.kind in ("sequence", "image"):
        return [value.tolist() for value in dataset.encoded(name, rows)]
    out = np.zeros((len(dataset), *described.shape), described.dtype)
    dataset.gather(name, rows, out)
    return list(out.tolist())


def with_small_blocks(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Pieces and blocks of a few rows, so that a small source has several."""
    monkeypatch.setattr(f"data_pipeline.sources.{module}.BLOCK_BYTES", 100)
    monkeypatch.setattr(f"data_pipeline.sources.{module}.PIECE_BYTES", 300)
