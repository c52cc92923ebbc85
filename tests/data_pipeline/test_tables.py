"""CSV, TSV, Parquet, JSON lines, Arrow and Feather files, as pyarrow writes them, to data sets."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline import DataError, Dataset, convert
from data_pipeline.conversion.options import Report
from data_pipeline.manifest import Column
from data_pipeline.sources import arrow_files, csv_files, json_lines, parquet, tables
from data_pipeline.sources.detect import KINDS, open_source
from data_pipeline.sources.source import Reading
from tests.read_back import column_of

ROWS = 30
WORDS = ["", "häß", 'a "quoted" word', "two\nlines", "comma, tab\t"]


def flat_table() -> pa.Table:
    generator = np.random.default_rng(0)
    return pa.table(
        {
            "whole": pa.array(generator.integers(-99, 99, ROWS)),
            "real": pa.array(generator.normal(size=ROWS)),
            "yes": pa.array([row % 2 == 0 for row in range(ROWS)]),
            "word": pa.array([WORDS[row % 5] for row in range(ROWS)]),
            "label": pa.array([("dog", "cat", "10")[row % 3] for row in range(ROWS)]),
        }
    )


def nested_table() -> pa.Table:
    generator = np.random.default_rng(1)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(
        generator.integers(0, 255, (ROWS, 2, 3), np.uint8)
    )
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(generator.normal(size=4 * ROWS)), 4)
    lists = pa.array([list(range(row % 4)) for row in range(ROWS)], pa.list_(pa.int32()))
    steps = pa.array(
        [[[row, 1.5]] * (row % 3) for row in range(ROWS)], pa.list_(pa.list_(pa.float32(), 2))
    )
    kinds = pa.array([("b", "a")[row % 2] for row in range(ROWS)]).dictionary_encode()
    return pa.table(
        {"tensor": tensor, "fixed": fixed, "lists": lists, "steps": steps, "kind": kinds}
    )


def values(folder: Path, name: str, part: str = "train") -> list[Any]:
    """The rows of a column, labels by their names."""
    found, described = column_of(folder, name, part), Dataset(folder, part).column(name)
    return [described.classes[label] for label in found] if described.kind == "label" else found


def write_csv(table: pa.Table, path: Path) -> None:
    delimiter = "," if path.suffix == ".csv" else "\t"
    pyarrow.csv.write_csv(table, path, pyarrow.csv.WriteOptions(delimiter=delimiter))


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path, row_group_size=7)


def write_json(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def write_ipc(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_feather(table: pa.Table, path: Path) -> None:
    pyarrow.feather.write_feather(table, str(path), compression="lz4", chunksize=11)


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "a b.csv": write_csv,
    "a.tsv": write_csv,
    "a.parquet": write_parquet,
    "a.jsonl": write_json,
    "a.arrow": write_ipc,
    "a.arrows": write_stream,
    "a.feather": write_feather,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_is_read_back_equal(tmp_path: Path, name: str) -> None:
    table = flat_table()
    WRITERS[name](table, tmp_path / name)
    report = convert(tmp_path / name, tmp_path / "d", rows_per_shard=8)
    assert report.rows == {"train": ROWS}
    assert report.classes == {"label": ("10", "cat", "dog")}
    assert [(column.name, column.kind, column.dtype) for column in columns(tmp_path / "d")] == [
        ("whole", "number", "int64"),
        ("real", "number", "float64"),
        ("yes", "number", "uint8"),
        ("word", "text", "uint8"),
        ("label", "label", "int64"),
    ]
    for column in table.column_names:
        assert values(tmp_path / "d", column) == table.column(column).to_pylist(), column


def columns(folder: Path) -> list[Column]:
    return list(Dataset(folder).columns.values())


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows", "a.feather"])
def test_lists_tensors_and_dictionaries_are_read_back_equal(tmp_path: Path, name: str) -> None:
    table = nested_table()
    WRITERS[name](table, tmp_path / name)
    convert(tmp_path / name, tmp_path / "d", rows_per_shard=8)
    assert columns(tmp_path / "d") == [
        Column(name="tensor", kind="tensor", dtype="uint8", shape=(2, 3)),
        Column(name="fixed", kind="tensor", dtype="float64", shape=(4,)),
        Column(name="lists", kind="sequence", dtype="int32", max_length=3),
        Column(name="steps", kind="sequence", dtype="float32", shape=(2,), max_length=2),
        Column(name="kind", kind="label", dtype="int64", classes=("a", "b")),
    ]
    tensors = table.column("tensor").combine_chunks().to_numpy_ndarray().tolist()
    assert values(tmp_path / "d", "tensor") == tensors
    for column in ("fixed", "lists", "steps", "kind"):
        assert values(tmp_path / "d", column) == table.column(column).to_pylist(), column


def test_lists_of_json_are_sequences(tmp_path: Path) -> None:
    rows = [{"x": [0.5] * (row % 3), "y": [{"a": 1}] and row} for row in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    convert(tmp_path / "a.jsonl", tmp_path / "d")
    assert values(tmp_path / "d", "x") == [row["x"] for row in rows]


def test_pieces_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = flat_table()
    for module in (csv_files, json_lines, parquet, arrow_files):
        monkeypatch.setattr(module, "PIECE_BYTES", 200)
    for module in (tables, parquet):
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    for name in ("a.csv", "a.jsonl", "a.parquet", "a.arrow"):
        write = WRITERS["a b.csv" if name == "a.csv" else name]
        write(table, tmp_path / name)
        source = open_source(tmp_path / name, Reading())
        assert len(source.pieces) > 3
        convert(source, tmp_path / f"{name} set")
        for column in table.column_names:
            found = values(tmp_path / f"{name} set", column)
            assert found == table.column(column).to_pylist(), (name, column)


@pytest.mark.parametrize(("name", "writer"), [("parquet", write_parquet), ("csv", write_csv)])
def test_the_files_of_a_folder_come_by_name_and_may_be_called_by_parts(
    tmp_path: Path, name: str, writer: Callable[[pa.Table, Path], None]
) -> None:
    table = flat_table()
    (tmp_path / "plain").mkdir()
    writer(table.slice(20), tmp_path / "plain" / f"b.{name}")
    writer(table.slice(0, 20), tmp_path / "plain" / f"a.{name}")
    assert convert(tmp_path / "plain", tmp_path / "d").rows == {"train": ROWS}
    assert values(tmp_path / "d", "real") == table.column("real").to_pylist()
    (tmp_path / "parts" / "data").mkdir(parents=True)
    writer(table.slice(0, 20), tmp_path / "parts" / "data" / f"train-00000-of-00001.{name}")
    writer(table.slice(20), tmp_path / "parts" / "data" / f"val.{name}")
    kind = "csv" if name == "csv" else "parquet"
    report = convert(tmp_path / "parts", tmp_path / "e", kind=kind)
    assert report.rows == {"train": 20, "validation": 10}


def test_several_columns_of_numbers_become_one_tensor(tmp_path: Path) -> None:
    write_csv(flat_table(), tmp_path / "a.csv")
    reading = Reading(stack={"first": ("real", "whole"), "rest": ("*",)})
    convert(tmp_path / "a.csv", tmp_path / "d", reading=reading)
    dataset = Dataset(tmp_path / "d")
    assert list(dataset.columns) == ["word", "label", "first", "rest"]
    assert dataset.column("first") == Column(
        name="first", kind="tensor", dtype="float32", shape=(2,)
    )
    expected = np.stack([flat_table().column(name).to_numpy() for name in ("real", "whole")], 1)
    assert values(tmp_path / "d", "first") == expected.astype(np.float32).tolist()
    assert values(tmp_path / "d", "rest") == [[float(row % 2 == 0)] for row in range(ROWS)]


def test_the_column_of_parts_is_in_no_stack(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y,fold\n" + "".join(f"{n},1,{n % 2}\n" for n in range(9)))
    reading = Reading(stack={"f": ("*",)})
    report = convert(tmp_path / "a.csv", tmp_path / "d", reading=reading, split_by="fold")
    assert report.rows == {"0": 5, "1": 4}
    assert columns_of(tmp_path / "d", "0") == ["f"]
    assert values(tmp_path / "d", "f", "1") == [[n, 1.0] for n in (1, 3, 5, 7)]


def columns_of(folder: Path, part: str) -> list[str]:
    return list(Dataset(folder, part).columns)


def test_types_can_be_given(tmp_path: Path) -> None:
    write_csv(flat_table(), tmp_path / "a.csv")
    types = {"whole": "int16", "real": "text", "word": "skip", "label": "text", "yes": "label"}
    convert(tmp_path / "a.csv", tmp_path / "d", reading=Reading(types=types))
    assert [(column.name, column.kind, column.dtype) for column in columns(tmp_path / "d")] == [
        ("whole", "number", "int16"),
        ("real", "text", "uint8"),
        ("yes", "label", "int64"),
        ("label", "text", "uint8"),
    ]
    write_parquet(flat_table(), tmp_path / "a.parquet")
    types = {"whole": "float32", "real": "text"}
    convert(tmp_path / "a.parquet", tmp_path / "e", reading=Reading(types=types))
    assert Dataset(tmp_path / "e").column("whole").dtype == "float32"
    assert values(tmp_path / "e", "whole") == flat_table().column("whole").to_pylist()


def test_labels_of_whole_numbers_are_classes_in_the_order_of_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{n},{(100, 20, 3)[n % 3]}\n" for n in range(9))
    (tmp_path / "a.csv").write_text("x,digit\n" + rows)
    report = convert(tmp_path / "a.csv", tmp_path / "d", reading=Reading(label="digit"))
    assert report.classes == {"digit": ("3", "20", "100")}


def test_a_label_that_is_a_real_number_is_a_number_to_be_predicted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,label\n1,0.5\n2,1.5\n")
    convert(tmp_path / "a.csv", tmp_path / "d")
    assert Dataset(tmp_path / "d").column("label").kind == "number"
    with pytest.raises(DataError, match="is to be the label, but is double: classes are strings"):
        convert(tmp_path / "a.csv", tmp_path / "e", reading=Reading(label="label"))


def picture(shade: int, *, grey: bool = False) -> bytes:
    out = io.BytesIO()
    Image.new("L" if grey else "RGB", (3, 2), shade if grey else (shade, 0, 255)).save(out, "PNG")
    return out.getvalue()


def test_encoded_pictures_are_kept_or_decoded(tmp_path: Path) -> None:
    pictures = [picture(shade) for shade in range(5)]
    structs = [{"bytes": encoded, "path": None} for encoded in pictures]
    table = pa.table({"image": pa.array(structs), "raw": pa.array(pictures)})
    write_parquet(table, tmp_path / "a.parquet")
    reading = Reading(types={"raw": "grey"})
    convert(tmp_path / "a.parquet", tmp_path / "d", reading=reading)
    dataset = Dataset(tmp_path / "d")
    assert dataset.column("image") == Column(name="image", kind="image", dtype="uint8", shape=(3,))
    found = [value.tobytes() for value in dataset.encoded("image", np.arange(5))]
    assert found == pictures
    assert dataset.column("raw").shape == (1,)
    assert dataset.statistics["image"].mean == (2.0, 0.0, 255.0)
    assert dataset.statistics["image"].std == pytest.approx([2**0.5, 0.0, 0.0])
    reading = Reading(size=(2, 3), types={"raw": "skip"})
    convert(tmp_path / "a.parquet", tmp_path / "e", reading=reading)
    pixels = np.array(values(tmp_path / "e", "image"))
    assert pixels.shape == (5, 3, 2, 3)
    assert pixels[:, 0, 0, 0].tolist() == list(range(5))


def test_pictures_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([picture(1), b"no picture", picture(3)]), "n": [1, 2, 3]})
    write_parquet(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet row 1: it is neither JPEG nor PNG"):
        convert(tmp_path / "a.parquet", tmp_path / "d")
    report = convert(tmp_path / "a.parquet", tmp_path / "d", skip_bad=1)
    assert len(report.skipped) == 1
    assert values(tmp_path / "d", "n") == [1, 3]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl", "a.arrow"])
def test_missing_numbers_are_refused_by_name_or_kept_and_counted(tmp_path: Path, name: str) -> None:
    table = pa.table({"n": pa.array([1, None, 3, 4]), "r": pa.array([0.5, 1.5, None, 2.5])})
    WRITERS["a b.csv" if name == "a.csv" else name](table, tmp_path / name)
    where = {"a.csv": "a.csv line 3", "a.jsonl": "a.jsonl line 2"}.get(name, f"{name} row 1")
    with pytest.raises(DataError, match=f"column 'n' has no value in {where}: fill it, .*keep"):
        convert(tmp_path / name, tmp_path / "d")
    convert(tmp_path / name, tmp_path / "d", reading=Reading(missing="keep"))
    assert np.array_equal(values(tmp_path / "d", "n"), [1, np.nan, 3, 4], equal_nan=True)
    statistics = Dataset(tmp_path / "d").statistics
    assert (statistics["n"].missing, statistics["r"].missing) == (1, 1)
    assert statistics["r"].mean == pytest.approx([1.5])


def refused(path: Path, tmp_path: Path, **reading: Any) -> str:
    with pytest.raises(DataError) as caught:
        convert(path, tmp_path / "no set", reading=Reading(**reading))
    assert not (tmp_path / "no set").exists()
    return str(caught.value)


def test_broken_lines_are_left_out_up_to_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3\n\n4,5\n6,7,8\n9,10\n")
    report = convert(tmp_path / "a.csv", tmp_path / "d", skip_bad=2)
    assert values(tmp_path / "d", "x") == [1, 4, 9]
    assert report == Report(
        rows={"train": 3},
        classes={},
        skipped=[
            f"{tmp_path}/a.csv line {line} has {count} values where there are 2 columns"
            for line, count in ((3, 1), (6, 3))
        ],
        digest=report.digest,
    )
    (tmp_path / "a.jsonl").write_text('{"x": 1}\nno\n\n[1]\n{"x": 2}\n')
    assert "a.jsonl line 2 is no JSON object" in refused(tmp_path / "a.jsonl", tmp_path)
    report = convert(tmp_path / "a.jsonl", tmp_path / "e", skip_bad=2)
    assert len(report.skipped) == 2
    assert values(tmp_path / "e", "x") == [1, 2]


def test_files_of_one_folder_need_the_same_columns(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_parquet(pa.table({"x": [1]}), tmp_path / "in" / "a.parquet")
    write_parquet(pa.table({"y": [1]}), tmp_path / "in" / "b.parquet")
    assert "files of one folder need the same columns" in refused(tmp_path / "in", tmp_path)


def test_kinds_are_detected_or_listed(tmp_path: Path) -> None:
    (tmp_path / "a.xyz").write_text("?")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (
            tmp_path / "a.xyz",
            f"is of no kind that is known: name one with --kind; there are {', '.join(KINDS)}",
        ),
        (tmp_path / "empty", "is an empty folder: there is nothing to convert"),
        (tmp_path / "none", "there is no "),
    ):
        assert message in refused(path, tmp_path)
    with pytest.raises(DataError, match="there is no kind of source 'excel'; there are "):
        open_source(tmp_path / "a.xyz", Reading(), "excel")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows", "a.feather"])
def test_damaged_files_are_refused_and_end_no_process(tmp_path: Path, name: str) -> None:
    writer = WRITERS[name]
    writer(pa.concat_tables([flat_table().select(["whole", "word"])]), tmp_path / name)
    good = (tmp_path / name).read_bytes()
    generator = np.random.default_rng(0)
    messages: list[str] = []
    for place in generator.integers(0, len(good), 60).tolist():
        damaged = bytearray(good)
        damaged[place] ^= 255
        file = tmp_path / f"{place}{Path(name).suffix}"
        file.write_bytes(damaged)
        try:
            source = open_source(file, Reading())
            for piece in source.pieces:
                for block in source.read(piece):
                    assert all(len(rows) == len(block.origins) for rows in block.rows.values())
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert all(Path(name).suffix in text or "column" in text for text in messages)
    (tmp_path / f"cut{Path(name).suffix}").write_bytes(good[: len(good) // 2])
    if name != "a.arrows":  # what is left of a stream may be one
        assert "cannot be read as" in refused(tmp_path / f"cut{Path(name).suffix}", tmp_path)
