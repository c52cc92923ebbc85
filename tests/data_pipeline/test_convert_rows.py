"""`write`: rows as a program makes them, to a data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import DataError, Dataset, write
from data_pipeline.manifest import Column
from tests.folders import names
from tests.read_back import column_of

X = Column(name="x", kind="number", dtype="int64")
TEXT = Column(name="text", kind="text", dtype="uint8")


def test_a_type_that_widens_when_rows_are_added_moves_none(tmp_path: Path) -> None:
    whole = [{"x": row, "t": "a"} for row in range(200)]
    wide = [{"x": float(row), "t": "a"} for row in range(200)] + [{"x": 0.5, "t": "a"}]
    for name, rows in (("int", whole), ("float", wide)):
        write(tmp_path / name, rows, split={"test": 0.3})
    before, after = (column_of(tmp_path / name, "x", "test") for name in ("int", "float"))
    assert before == [value for value in after if value != 0.5]


def test_all_kinds_of_rows_are_written_as_they_come(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    walk = Column(name="walk", kind="sequence", dtype="float32", shape=(2,))
    columns = (X, TEXT, walk, Column(name="t", kind="tensor", dtype="uint8", shape=(1, 2, 2)))
    rows: list[dict[str, Any]] = [
        {
            "x": row,
            "text": "é" * (row % 4),
            "walk": generator.normal(size=(row % 3, 2)).astype(np.float32),
            "t": generator.integers(0, 255, (1, 2, 2), np.uint8),
        }
        for row in range(50)
    ]
    report = write(tmp_path / "d", iter(rows), columns=columns, rows_per_shard=20)
    assert report.rows == {"train": 50}
    dataset = Dataset(tmp_path / "d")
    assert dataset.column("walk").max_length == 2
    assert dataset.column("text").max_length == 6
    assert column_of(tmp_path / "d", "text") == [row["text"] for row in rows]
    out, lengths = np.zeros((50, 2, 2), np.float32), np.zeros(50, np.int64)
    dataset.gather_padded("walk", np.arange(50), out, lengths)
    for place, row in enumerate(rows):
        assert lengths[place] == len(row["walk"])
        assert np.array_equal(out[place, : lengths[place]], row["walk"])
    steps = np.concatenate([row["walk"] for row in rows]).astype(np.float64)
    assert dataset.statistics["walk"].mean == pytest.approx(steps.mean(axis=0), rel=1e-12)
    assert dataset.statistics["walk"].std == pytest.approx(steps.std(axis=0), rel=1e-12)


def test_the_first_row_says_what_undeclared_columns_hold(tmp_path: Path) -> None:
    rows = [{"a": 1.5, "b": np.zeros(3, np.int16), "c": "text", "y": name} for name in "bab"]
    write(tmp_path / "d", rows, label="y")
    assert list(Dataset(tmp_path / "d").columns.values()) == [
        Column(name="a", kind="number", dtype="float64"),
        Column(name="b", kind="tensor", dtype="int16", shape=(3,)),
        Column(name="c", kind="text", dtype="uint8", max_length=4),
        Column(name="y", kind="label", dtype="int64", classes=("a", "b")),
    ]
    assert column_of(tmp_path / "d", "y") == [1, 0, 1]


def test_rows_can_name_their_part(tmp_path: Path) -> None:
    rows = [{"a": number, "fold": "test" if number % 3 else "train"} for number in range(9)]
    assert write(tmp_path / "d", rows, split_by="fold").rows == {"train": 3, "test": 6}
    assert list(Dataset(tmp_path / "d").columns) == ["a"]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "there are no rows"),
        ([{"a": 1}, {"b": 1}], {}, r"row 1 has \['b'\], but the columns are \['a'\]"),
        ([{"a": [1]}, {"a": [1, 2]}], {}, r"row 1 has int64 of shape \(2,\): declare it"),
        ([{"a": 1}, {"a": 0.5}], {}, r"shape \(\), but row 1 has float64"),
        ([{"a": None}], {}, "column 'a' has NoneType .* in row 0"),
        ([{"a": 1}], {"label": "y"}, r"the label is 'y', but row 0 has \['a'\]"),
        ([{"a": 1.0}, {"a": np.nan}], {}, "column 'a' has NaN or infinity in row 1; a missing"),
    ],
)
def test_rows_that_make_no_data_set_are_refused_and_leave_nothing(
    tmp_path: Path, rows: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write(tmp_path / "d", rows, **options)
    assert names(tmp_path) == []


def test_missing_values_are_counted_where_they_are_allowed(tmp_path: Path) -> None:
    rows = [{"a": value} for value in (1.0, np.nan, 3.0)]
    write(tmp_path / "d", rows, missing_allowed=True)
    statistics = Dataset(tmp_path / "d").statistics["a"]
    assert (statistics.count, statistics.missing, statistics.mean) == (3, 1, (2.0,))
    with pytest.raises(DataError, match="column 'a' has not a single value"):
        write(tmp_path / "e", [{"a": np.nan}], missing_allowed=True)


def test_rows_broken_off_by_their_maker_leave_nothing(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", rows())
    assert names(tmp_path) == []
