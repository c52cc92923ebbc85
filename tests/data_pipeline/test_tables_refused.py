"""Tables that no data set holds, and damaged ones, are refused with the way out."""

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from data_pipeline import DataError, convert
from data_pipeline.sources.source import Reading


def refused(path: Path, tmp_path: Path, **reading: Any) -> str:
    with pytest.raises(DataError) as caught:
        convert(path, tmp_path / "no set", reading=Reading(**reading))
    assert not (tmp_path / "no set").exists()
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "reading", "message"),
    [
        ("x,y\n1,2\n3,4,5\n6,7\n", {}, "a.csv line 3 has 3 values where there are 2 columns: none"),
        ("x,y\n1,2\n\n3\n6,7\n", {}, "a.csv line 4 has 1 values where there are 2 columns"),
        ('x,y\n1,"a\nb"\n3\n', {}, "a.csv line 4 has 1 values"),
        (
            "x,y\n1,2\n3,four\n",
            {"types": {"y": "int64"}},
            "a.csv line 3, column 'y' cannot be read as int64: invalid value 'four'; mend it, or",
        ),
        ("x,y\n1,2021-03-04\n", {}, "column 'y' is date32[day], which no data set holds: read it"),
        ("x,y\n1,\n", {}, "column 'y' is null, which no data set holds: no value shows its type"),
        ("x,label\n1,\n2,a\n", {"label": "label"}, "column 'label' has no value in a.csv line 2"),
        ("x,x\n1,2\n", {}, "the names of its columns are not unique, ['x'] stand there twice"),
        ("x,\n1,2\n", {}, "line 1 leaves a column without a name"),
        ("", {}, "a.csv is empty: a first line of names"),
        ("x,y\n", {}, "holds no rows behind its line of names"),
        ("x\n1\nnan\n", {}, "column 'x' has no value in a.csv line 3"),
        ("x\n1\ninf\n", {}, "column 'x' has NaN or infinity in a.csv line 3"),
        ("x\ninf\n", {"missing": "keep"}, "column 'x' has infinity in a.csv line 2"),
        ('x,y\n1,"2\n', {}, "a double quote that opens in line 1 or behind it is never closed"),
        ("x,y\n1,2\n", {"label": "z"}, "has no column 'z', which --label names"),
        ("x,y\n1,2\n", {"types": {"x": "foo"}}, "column 'x' cannot be read as 'foo': there are"),
        ("x,y\n1,2\n", {"types": {"x": "skip", "y": "skip"}}, "all of its columns are skipped"),
        ("x,y\n1,a\n", {"stack": {"f": ("y",)}}, "stacked of 'y', which is no column of numbers"),
        ("x,y\n1,2\n", {"stack": {"y": ("x",)}}, "a name that no other column has, and at least"),
        ("x,y\n1,2\n", {"stack": {"f": ("x", "x")}}, "no column is stacked twice"),
        ("x,y\n1,a\n", {"image": "y"}, "column 'y' is string: pictures are encoded, as binary"),
    ],
)
def test_a_csv_that_cannot_be_kept_is_refused_with_its_line(
    tmp_path: Path, content: str, reading: dict[str, Any], message: str
) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert message in refused(tmp_path / "a.csv", tmp_path, **reading)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([dt.datetime(2020, 1, 1, tzinfo=dt.UTC)]), "--type c=text or --type c=int64"),
        (pa.array([b"abc"]), "if it holds pictures, say --image c, or leave it out with"),
        (pa.array([decimal.Decimal("1.5")]), "read it as --type c=float64"),
        (pa.array([{"a": 1}]), "numbers, lists of numbers and strings go"),
        (pa.array([[[1], [2, 3]]]), "which no data set holds"),
        (pa.array([["a"]]), "which no data set holds"),
        (pa.array([[1, None]]), "an element within a list is missing; give another"),
        (pa.array([None], pa.string()), "column 'c' has no value in a.parquet row 0"),
    ],
)
def test_what_no_data_set_holds_is_refused_with_the_way_out(
    tmp_path: Path, column: pa.Array, message: str
) -> None:
    pq.write_table(pa.table({"c": column, "d": pa.array([1])}), tmp_path / "a.parquet")
    assert message in refused(tmp_path / "a.parquet", tmp_path)
    convert(tmp_path / "a.parquet", tmp_path / "d", reading=Reading(types={"c": "skip"}))


def test_offsets_that_lead_out_of_the_values_are_refused(tmp_path: Path) -> None:
    offsets = np.array([0, 3, 2**30, 6], np.int32)
    data = [None, pa.py_buffer(offsets), pa.py_buffer(b"abcdef")]
    table = pa.table({"word": pa.StringArray.from_buffers(3, data[1], data[2])})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert "cannot be read" in refused(tmp_path / "a.arrow", tmp_path)


def test_a_partitioned_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "year=2020").mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "in" / "year=2020" / "a.parquet")
    assert "'year=2020' stands for a column" in refused(tmp_path / "in", tmp_path)


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    (tmp_path / "in" / "a.parquet").symlink_to(tmp_path / "b.parquet")
    assert "leaves the folder" in refused(tmp_path / "in", tmp_path)
