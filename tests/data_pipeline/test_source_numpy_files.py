from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from data_pipeline import DataError
from data_pipeline.manifest import DTYPES, Column
from data_pipeline.sources.numpy_files import matches, open_source
from data_pipeline.sources.source import Reading
from tests.read_back import check_converted, only_part, read_back, with_small_blocks
from tests.source_files import write_arrays

X = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
Y = np.array([3, 1, 0, 1, 2, 3, 3, 0, 1, 1])
NAMES = ("stored", "packed", "folder")


@pytest.mark.parametrize("kind", NAMES)
def test_each_array_is_a_column(tmp_path: Path, kind: str) -> None:
    path = write_arrays(tmp_path / "a", kind, {"x": X, "z": Y * 0.5, "y": Y})
    source = open_source(path, Reading())
    assert source.columns == (
        Column(name="x", kind="tensor", dtype="float32", shape=(3, 2)),
        Column(name="y", kind="label", dtype="int64", classes=("0", "1", "2", "3")),
        Column(name="z", kind="number", dtype="float64"),
    )
    rows = only_part(source)
    np.testing.assert_array_equal(rows.array("x"), X)
    np.testing.assert_array_equal(rows.array("y"), Y)
    np.testing.assert_array_equal(rows.array("z"), Y * 0.5)
    assert rows.origins == [f"x row {row}" for row in range(10)]


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_pieces_and_blocks_of_a_few_rows_give_the_same(
    tmp_path: Path, kind: str, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_arrays(tmp_path / "a", kind, {"x": np.asarray(X, order=order), "y": Y})
    with_small_blocks(monkeypatch, "numpy_files")
    source = open_source(path, Reading())
    # 32 bytes a row; what is compressed can only be read from its beginning.
    assert [(p.start, p.stop) for p in source.pieces] == (
        [(0, 10)] if kind == "packed" else [(0, 9), (9, 10)]
    )
    assert [len(block.origins) for block in source.read(source.pieces[0])][:2] == [3, 3]
    np.testing.assert_array_equal(only_part(source).array("x"), X)
    np.testing.assert_array_equal(only_part(source).array("y"), Y)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["stored", "packed", "folder"]),
    st.sampled_from(["<", ">"]),
    st.sampled_from(["C", "F"]),
    st.data(),
)
def test_arrays_of_any_type_are_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, kind: str, byte_order: str, order: Any, data: Any
) -> None:
    dtype = data.draw(st.sampled_from([*DTYPES, "bool"]))
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    array = data.draw(hnp.arrays(np.dtype(dtype).newbyteorder(byte_order), shape))
    array = np.asarray(array, order=order)
    path = write_arrays(tmp_path_factory.mktemp("a") / "a", kind, {"a": array})
    source = open_source(path, Reading())
    assert source.columns[0].dtype == ("uint8" if dtype == "bool" else dtype)
    found = only_part(source).array("a")
    assert found.dtype == np.dtype(source.columns[0].dtype)
    np.testing.assert_array_equal(found, array.astype(found.dtype))


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_val", "y_val", "x_test", "y_test"),
        ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y"),
    ],
)
def test_arrays_called_by_parts_become_parts(
    tmp_path: Path, kind: str, names: tuple[str, ...]
) -> None:
    cuts = [slice(0, 5), slice(0, 5), slice(5, 7), slice(5, 7), slice(7, 10), slice(7, 10)]
    arrays = {
        name: (X if "x" in name.replace("x_", "x") and "y" not in name else Y)[cut]
        for name, cut in zip(names, cuts, strict=True)
    }
    source = open_source(write_arrays(tmp_path / "a", kind, arrays), Reading())
    assert [column.name for column in source.columns] == ["x", "y"]
    parts = read_back(source)
    assert list(parts) == ["test", "train", "validation"]
    for part, name, cut in zip(("train", "validation", "test"), names[::2], cuts[::2], strict=True):
        np.testing.assert_array_equal(parts[part].array("x"), X[cut])
        np.testing.assert_array_equal(parts[part].array("y"), Y[cut])
        assert parts[part].origins[0] == f"{name} row 0"


@pytest.mark.parametrize(
    ("reading", "name"),
    [(Reading(), "x"), (Reading(label="who"), "who"), (Reading(image="scan"), "scan")],
)
def test_a_single_npy_is_one_column(tmp_path: Path, reading: Reading, name: str) -> None:
    array = Y if reading.label else np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", array)
    source = open_source(tmp_path / "a.npy", reading)
    assert [column.name for column in source.columns] == [name]
    found = only_part(source).array(name)
    np.testing.assert_array_equal(found, array[:, None] if reading.image else array)


def test_strings_are_classes_of_a_label_or_else_texts(tmp_path: Path) -> None:
    words = np.array(["cat", "", "dög"])
    path = write_arrays(
        tmp_path / "a", "stored", {"label": words, "title": words, "raw": words.copy()}
    )
    source = open_source(path, Reading())
    kinds = {column.name: (column.kind, column.classes) for column in source.columns}
    assert kinds == {"label": ("label", ()), "raw": ("text", ()), "title": ("text", ())}
    rows = only_part(source)
    assert rows.values["label"] == rows.values["title"] == ["cat", "", "dög"]


def test_bytes_are_texts_in_utf8(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(["dög".encode(), b"x"]))
    assert only_part(open_source(tmp_path / "a.npy", Reading())).values["x"] == ["dög", "x"]
    np.save(tmp_path / "a.npy", np.array([b"\xff"]))
    with pytest.raises(DataError, match=r"the array 'x' holds bytes that are no text in UTF-8"):
        only_part(open_source(tmp_path / "a.npy", Reading()))


@pytest.mark.parametrize("name", ["label", "labels"])
def test_whole_numbers_called_so_are_labels(tmp_path: Path, name: str) -> None:
    path = write_arrays(tmp_path / "a", "stored", {name: Y[:, None]})
    assert open_source(path, Reading()).columns[0].kind == "label"
    assert open_source(path, Reading(types={name: "float32"})).columns[0].kind == "tensor"
    path = write_arrays(tmp_path / "b", "stored", {name: Y * 0.5})
    assert open_source(path, Reading()).columns[0].kind == "number"


def test_y_is_a_label_beside_an_x_alone(tmp_path: Path) -> None:
    for number, (others, kind) in enumerate(
        [({}, "number"), ({"z": X}, "number"), ({"x": X}, "label"), ({"X": X}, "label")]
    ):
        path = write_arrays(tmp_path / str(number), "stored", {**others, "y": Y})
        columns = {column.name: column for column in open_source(path, Reading()).columns}
        assert columns["y"].kind == kind
    path = write_arrays(tmp_path / "real", "stored", {"x": X, "y": Y * 0.5})
    assert open_source(path, Reading()).columns[1].kind == "number"


def test_a_label_is_named_or_given_as_a_type(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "a", "stored", {"who": Y, "x": Y, "y": Y, "on": Y > 1})
    kinds = {c.name: c.kind for c in open_source(path, Reading(label="who")).columns}
    assert kinds == {"on": "number", "who": "label", "x": "number", "y": "number"}
    columns = {c.name: c for c in open_source(path, Reading(types={"on": "label"})).columns}
    assert columns["on"].classes == ("0", "1")
    assert columns["y"].kind == "label"


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 5, 1), (2, 3, 5, 3), (2, 3, 5, 4)])
def test_arrays_of_pictures_get_their_channels_in_front(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    pictures = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = write_arrays(tmp_path / "a", "stored", {"photo": pictures})
    channels = shape[3] if len(shape) == 4 else 1
    rows = only_part(open_source(path, Reading(image="photo")))
    expected = pictures.reshape(2, 3, 5, channels).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(rows.array("photo"), expected)
    resized = open_source(path, Reading(image="photo", size=(6, 4)))
    assert resized.columns[0].shape == (channels, 6, 4)
    assert only_part(resized).array("photo").shape == (2, channels, 6, 4)


def test_numbers_are_stacked_and_columns_left_out(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "a", "stored", {"a": Y, "b": Y * 0.5, "c": Y > 1, "y": Y})
    source = open_source(path, Reading(stack={"x": ("b", "*")}, types={"y": "skip"}))
    assert source.columns == (Column(name="x", kind="tensor", dtype="float32", shape=(3,)),)
    np.testing.assert_array_equal(
        only_part(source).array("x"), np.stack([Y * 0.5, Y, Y > 1], axis=1)
    )


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("other", [np.array([{}, None]), np.array(1j), Y[:3], np.zeros(0)])
def test_what_no_column_can_hold_can_be_left_out(
    tmp_path: Path, kind: str, other: NDArray[Any]
) -> None:
    path = write_arrays(tmp_path / "a", kind, {"a": other, "x": X})
    with pytest.raises(DataError):
        open_source(path, Reading())
    np.testing.assert_array_equal(
        only_part(open_source(path, Reading(types={"a": "skip"}))).array("x"), X
    )


@pytest.mark.parametrize("values", [np.array(["a", "b"] * 5), Y])
def test_the_column_of_parts_is_given_as_text(tmp_path: Path, values: NDArray[Any]) -> None:
    path = write_arrays(tmp_path / "a", "packed", {"x": X, "y": values})
    source = open_source(path, Reading(split_by="y"))
    assert source.columns[1] == Column(name="y", kind="text", dtype="uint8")
    assert only_part(source).values["y"] == [str(value) for value in values]


@pytest.mark.parametrize("wanted", ["float32", "uint8", "int64"])
def test_a_column_is_read_as_the_type_given(tmp_path: Path, wanted: str) -> None:
    path = write_arrays(tmp_path / "a", "folder", {"a": np.array([1.0, 255.0])})
    rows = only_part(open_source(path, Reading(types={"a": wanted})))
    assert rows.array("a").dtype == wanted
    assert rows.array("a").tolist() == [1, 255]


@pytest.mark.parametrize(
    ("values", "wanted", "value"),
    [
        ([1.0, 0.5], "int64", "0.5"),
        ([1, 256], "uint8", "256"),
        ([1, -1], "uint64", "-1"),
        ([0, 2**63], "int64", "9223372036854775808"),
        ([1.0, np.nan], "int8", "nan"),
        ([1.0, 1e300], "float32", "1e+300"),
    ],
)
def test_a_value_that_is_not_of_the_type_given_is_named(
    tmp_path: Path, values: list[float], wanted: str, value: str
) -> None:
    array = np.array(values, np.uint64) if max(values) == 2**63 else np.array(values)
    path = write_arrays(tmp_path / "a", "stored", {"a": array})
    with pytest.raises(DataError) as caught:
        only_part(open_source(path, Reading(types={"a": wanted})))
    assert f"the array 'a' holds {value}, which is no {wanted}: give another" in str(caught.value)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{}, None]), "holds Python objects, which could only be unpickled"),
        (np.array([1j]), "holds complex128, which no shard can hold"),
        (np.array(["2020-01-01"], "datetime64[D]"), r"holds datetime64\[D\], which no shard"),
        (np.zeros(2, [("a", "i4")]), r"holds .*'a'.*, which no shard can hold"),
        (np.zeros(2, np.longdouble), "holds (float128|longdouble), which no shard can hold"),
        (np.float32(1.0), r"array 'a' has shape \(\): it holds no rows"),
        (np.zeros((0, 2)), r"array 'a' has shape \(0, 2\): it holds no rows"),
        (np.zeros((2, 0)), r"array 'a' has shape \(2, 0\): it holds no rows"),
        (np.array([["a", "b"]]), r"holds strings or names of parts, \(2,\) a row: a row can have"),
    ],
)
def test_arrays_that_no_column_can_hold_are_refused_by_name(
    tmp_path: Path, kind: str, array: NDArray[Any], message: str
) -> None:
    path = write_arrays(tmp_path / "a", kind, {"a": array})
    with pytest.raises(DataError, match=message):
        open_source(path, Reading())


@pytest.mark.parametrize(
    ("arrays", "reading", "message"),
    [
        (
            {"x": X, "y": Y - 1},
            Reading(),
            r"array 'y' has the label -1: labels are numbered from 0",
        ),
        (
            {"x": X, "y": Y + 2**16},
            Reading(),
            r"has the label 65,539: labels are numbers of classes below",
        ),
        ({"a": Y * 0.5}, Reading(label="a"), r"is to be the label, but its rows are float64 of"),
        ({"a": X}, Reading(label="a"), r"is to be the label, but its rows .* \(3, 2\): labels are"),
        ({"a": X}, Reading(label="b"), r"has no column 'b', which --label names; .* \['a'\]"),
        ({"a": X}, Reading(image="b"), "has no column 'b', which --image names"),
        ({"a": X}, Reading(split_by="b"), "has no column 'b', which --split-by names"),
        ({"a": X}, Reading(types={"b": "int8"}), "has no column 'b', which --type names"),
        ({"a": X}, Reading(types={"a": "int7"}), "cannot be read as 'int7'; there are int8, int16"),
        ({"a": X}, Reading(types={"a": "skip"}), "every column is left out by --type NAME=skip"),
        ({"a": Y}, Reading(types={"a": "int8"}, label="a"), "is given the type int8, and is to be"),
        ({"a": X}, Reading(size=(2, 2)), r"a size is given, but no column of pictures: name it"),
        ({"a": Y}, Reading(image="a"), r"arrays of shape \(\): pictures are \(H, W\) or \(H, W, C"),
        ({"a": X}, Reading(image="a", size=(2, 2)), "pictures of float32: only those of uint8 can"),
        ({"a": np.array(["b"])}, Reading(types={"a": "int8"}), "strings, which are no int8"),
        ({"a": X}, Reading(stack={"b": ("a",)}), "stacked of 'a', which is no column of numbers"),
        ({"a": Y, "b": Y}, Reading(stack={"b": ("a",)}), r"needs a name that no other column has"),
        ({"a": Y}, Reading(stack={"b": ()}), r"'b' cannot be stacked of \[\]: it needs"),
        ({"x": X, "y": Y[:5]}, Reading(), r"differ in their number of rows: \{'x': 10, 'y': 5\}"),
        (
            {"x": X, "x_test": X[:5]},
            Reading(),
            r"\{'x': 10, 'x_test': 5\}; name those of parts alike \(all of them x_train, y_train",
        ),
        (
            {"x_train": X, "y_train": Y, "x_test": X},
            Reading(),
            r"part 'train' has the columns \['x', 'y'\], but part 'test' has \['x'\]",
        ),
        (
            {"x_train": X, "x_test": X[:, :1]},
            Reading(),
            r"'x_train' are float32 of shape \(3, 2\), but those of 'x_test' float32 of .*\(1, 2\)",
        ),
        ({"x_val": X, "x_valid": X}, Reading(), "are both 'x' of part 'validation'"),
    ],
)
def test_arrays_and_options_that_do_not_go_together_are_refused(
    tmp_path: Path, arrays: dict[str, NDArray[Any]], reading: Reading, message: str
) -> None:
    path = write_arrays(tmp_path / "a", "stored", arrays)
    with pytest.raises(DataError, match=message):
        open_source(path, reading)


def test_strings_of_different_lengths_go_in_different_parts(tmp_path: Path) -> None:
    arrays = {"y_train": np.array(["a", "b"]), "y_test": np.array(["long"])}
    rows = read_back(open_source(write_arrays(tmp_path / "a", "stored", arrays), Reading()))
    assert rows["test"].values["y"] == ["long"]


def test_one_array_cannot_be_label_and_picture(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Y)
    with pytest.raises(DataError, match="is one array: it cannot be both the label 'a' and the"):
        open_source(tmp_path / "a.npy", Reading(label="a", image="b"))


def test_a_folder_holds_npy_files_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.npy file: give a folder of \.npy files"):
        open_source(tmp_path, Reading())
    np.save(tmp_path / "a.npy", Y)
    np.savez(tmp_path / "b.npz", Y)
    with pytest.raises(
        DataError, match=r"holds b\.npz: give a folder of \.npy files, or one \.npz"
    ):
        open_source(tmp_path, Reading())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.npy").symlink_to(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"in/a\.npy is a path that leaves the folder"):
        open_source(tmp_path / "in", Reading())


def test_detection_goes_by_the_names_of_files(tmp_path: Path) -> None:
    assert not matches(tmp_path)
    for name in ("a.npy", "a.npz", "a.csv"):
        (tmp_path / name).touch()
        assert matches(tmp_path / name) == (name != "a.csv")
    assert matches(tmp_path)
    assert not matches(tmp_path / "b.npy")


@pytest.mark.parametrize("kind", NAMES)
def test_arrays_are_converted(tmp_path: Path, kind: str) -> None:
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:3] + 100, "y_test": Y[:3]}
    words = {"t_train": np.array([f"w{y}" for y in Y]), "t_test": np.array(["a", "", "b"])}
    path = write_arrays(tmp_path / "a", kind, {**arrays, **words})
    source = check_converted(path, tmp_path / "set", Reading())
    assert type(source).__name__ == "NumpyFiles"
