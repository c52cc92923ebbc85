from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline import DataError, Dataset, StorageError, write_dataset, writer
from data_pipeline.manifest import Column, read_manifest

X = Column(name="x", kind="tensor", dtype="float32", shape=(2,))
LABEL = Column(name="label", kind="label", dtype="int64", classes=("a", "b"))


def rows(count: int, offset: int = 0) -> dict[str, NDArray[Any]]:
    return {
        "x": np.arange(offset, offset + 2 * count, dtype=np.float32).reshape(count, 2),
        "label": np.arange(count) % 2,
    }


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_data_set_is_a_manifest_and_a_folder_of_shards_for_each_part(tmp_path: Path) -> None:
    parts = {"train": rows(5), "test": rows(2)}
    manifest = write_dataset(tmp_path / "d", "d", [X, LABEL], parts, rows_per_shard=2)
    assert names(tmp_path / "d") == [
        "manifest.json",
        "test",
        "test/00000.arrow",
        "train",
        "train/00000.arrow",
        "train/00001.arrow",
        "train/00002.arrow",
    ]
    assert read_manifest(tmp_path / "d") == manifest
    assert manifest.name == "d"
    assert manifest.columns == (X, LABEL)
    assert [shard.rows for shard in manifest.parts["train"].shards] == [2, 2, 1]


@pytest.mark.parametrize(("part", "first"), [("train", 50.0), ("b", 0.0)])
def test_statistics_are_those_of_train_or_else_of_the_first_part(
    tmp_path: Path, part: str, first: float
) -> None:
    parts = {"a": rows(4, offset=0), part: rows(4, offset=50)}
    manifest = write_dataset(tmp_path / "d", "d", [X, LABEL], parts)
    assert manifest.statistics["x"].mean == (first + 3.0, first + 4.0)


def test_a_shard_holds_as_many_rows_as_fit_in_the_usual_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 bytes a row
    monkeypatch.setattr(writer, "SHARD_BYTES", 100)
    manifest = write_dataset(tmp_path / "d", "d", [X, LABEL], {"train": rows(14)})
    assert [shard.rows for shard in manifest.parts["train"].shards] == [6, 6, 2]


def test_a_row_larger_than_the_usual_size_has_a_shard_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SHARD_BYTES", 10)
    manifest = write_dataset(tmp_path / "d", "d", [X, LABEL], {"train": rows(3)})
    assert [shard.rows for shard in manifest.parts["train"].shards] == [1, 1, 1]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "d: a data set needs at least one part"),
        ({"train": rows(0)}, "part 'train' is empty: every part needs at least one row"),
        ({"train": rows(2), "test": rows(0)}, "part 'test' is empty"),
        (
            {"train": {**rows(2), "x": rows(3)["x"]}},
            r"part 'train': columns differ in rows: {'x': 3, 'label': 2}",
        ),
        (
            {"train": {"x": rows(2)["x"]}},
            r"part 'train' has the columns \['x'\], but \['x', 'label'\] are declared",
        ),
        ({"train": {**rows(2), "z": np.ones(2)}}, r"'x', 'label', 'z'\], but \['x', 'label'\]"),
        ({"train": {}}, r"part 'train' has the columns \[\], but"),
        (
            {"train": rows(2), "validation": {**rows(2), "label": np.array([0, 2])}},
            "part 'validation': column 'label' has labels from 0 to 2, but 2 classes",
        ),
        (
            {"train": rows(1), "test": {**rows(1), "x": np.full((1, 2), np.nan, np.float32)}},
            r"part 'test': column 'x' has NaN or infinity in rows \[0\]",
        ),
        (
            {"train": {**rows(2), "x": np.ones((2, 2))}},
            "part 'train': column 'x' is declared as float32 of shape .* its rows are float64",
        ),
        (
            {"train": {**rows(2), "x": np.ones(2, np.float32)}},
            r"part 'train': column 'x' is declared as .* its rows are float32 of shape \(\)",
        ),
        *(({part: rows(1)}, "cannot be a part's name") for part in ("", ".", "..", "../e", "a/b")),
    ],
)
def test_parts_that_are_not_as_declared_are_refused_and_nothing_is_written(
    tmp_path: Path, parts: dict[str, dict[str, NDArray[Any]]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "sets" / "d", "d", [X, LABEL], parts)
    assert names(tmp_path) == []


@pytest.mark.parametrize("rows_per_shard", [0, -1])
def test_a_shard_of_no_rows_is_refused(tmp_path: Path, rows_per_shard: int) -> None:
    with pytest.raises(
        DataError, match=f"rows_per_shard is {rows_per_shard}; it must be 1 or more"
    ):
        write_dataset(
            tmp_path / "d", "d", [X, LABEL], {"train": rows(1)}, rows_per_shard=rows_per_shard
        )


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(StorageError, match=r"cannot write .*a/d: "):
        write_dataset(tmp_path / "a" / "d", "d", [X, LABEL], {"train": rows(1)})


def test_one_data_set_is_never_written_over_another(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", "first", [X, LABEL], {"train": rows(3)})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")}
    with pytest.raises(DataError, match="exists already: name another destination"):
        write_dataset(str(tmp_path / "d"), "second", [X, LABEL], {"train": rows(4)})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*")} == before
    assert Dataset(tmp_path / "d").num_rows == 3
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
