import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from data_pipeline import DataError
from data_pipeline.manifest import Column
from data_pipeline.sources import detect
from data_pipeline.sources.hugging_face import matches, open_source
from data_pipeline.sources.source import Reading
from tests.conftest import clean_environment
from tests.read_back import Rows, check_converted, only_part, read_back, with_small_blocks
from tests.source_files import one, png, saved

RANDOM = np.random.default_rng(0)
NUM_ROWS = 25


FEATURES = {
    "int": datasets.Value("int32"),
    "unsigned": datasets.Value("uint64"),
    "half": datasets.Value("float16"),
    "float": datasets.Value("float64"),
    "bool": datasets.Value("bool"),
    "text": datasets.Value("string"),
    "class": datasets.ClassLabel(names=["cat", "dog"]),
    "picture": datasets.Image(),
    "two": datasets.Array2D((2, 3), "float32"),
    "three": datasets.Array3D((2, 1, 2), "uint8"),
    "growing": datasets.Array3D((None, 2, 2), "int16"),
    "fixed": datasets.List(datasets.Value("int64"), length=2),
    "list": datasets.List(datasets.Value("float32")),
    "large": datasets.LargeList(datasets.Value("int8")),
    "pairs": datasets.List(datasets.List(datasets.Value("int64"), length=2)),
    "tags": datasets.List(datasets.ClassLabel(names=["a", "b"])),
}


def only(path: Path, reading: Reading | None = None) -> Rows:
    return only_part(open_source(path, reading or Reading()))


def rows_of(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "int": -n,
            "unsigned": 2**63 - 1 - n,
            "half": n / 2,
            "float": n / 3,
            "bool": n % 2 == 0,
            "text": "é" * n,
            "class": n % 2,
            "picture": {"bytes": png(n, 3 + n), "path": None},
            "two": np.full((2, 3), n, np.float32).tolist(),
            "three": np.full((2, 1, 2), n, np.uint8).tolist(),
            "growing": np.full((n + 1, 2, 2), n, np.int16).tolist(),
            "fixed": [n, -n],
            "list": [n / 4] * (n % 5),
            "large": [n] * (n % 3),
            "pairs": [[n, 1]] * (n % 4),
            "tags": [n % 2] * 3,
        }
        for n in range(start, start + count)
    ]


@pytest.mark.parametrize("small", [False, True])
def test_every_feature_is_read_as_the_library_gives_it(
    tmp_path: Path, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        with_small_blocks(monkeypatch, "hugging_face")
    path = saved(tmp_path / "d", rows_of(NUM_ROWS), FEATURES, num_shards=3)
    source = open_source(path, Reading())
    described = {c.name: (c.kind, c.dtype, c.shape, c.classes) for c in source.columns}
    assert described == {
        "int": ("number", "int32", (), ()),
        "unsigned": ("number", "uint64", (), ()),
        "half": ("number", "float16", (), ()),
        "float": ("number", "float64", (), ()),
        "bool": ("number", "uint8", (), ()),
        "text": ("text", "uint8", (), ()),
        "class": ("label", "int64", (), ("cat", "dog")),
        "picture": ("image", "uint8", (3,), ()),
        "two": ("tensor", "float32", (2, 3), ()),
        "three": ("tensor", "uint8", (2, 1, 2), ()),
        "growing": ("sequence", "int16", (2, 2), ()),
        "fixed": ("tensor", "int64", (2,), ()),
        "list": ("sequence", "float32", (), ()),
        "large": ("sequence", "int8", (), ()),
        "pairs": ("sequence", "int64", (2,), ()),
        "tags": ("sequence", "int64", (), ()),
    }
    assert len(source.pieces) == (25 if small else 3)
    rows = only(path)
    assert rows.origins == [f"row {n}" for n in range(NUM_ROWS)]
    library = datasets.load_from_disk(path).cast_column("picture", datasets.Image(decode=False))
    for number, expected in enumerate(library):
        for name, found in rows.values.items():
            wanted = expected[name]["bytes"] if name == "picture" else expected[name]
            if isinstance(found[number], np.ndarray) and found[number].shape[:1] != (0,):
                np.testing.assert_array_equal(found[number], np.array(wanted))
            else:
                assert (list(found[number]) if wanted == [] else found[number]) == wanted


def test_the_splits_of_a_dict_are_parts(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(
        [{"x": n, "label": "ab"[n % 2]} for n in range(10)],
    )
    parts = {"train": whole.select(range(6)), "test": whole.select([9, 8, 7, 6])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    source = open_source(tmp_path / "d", Reading())
    assert source.columns[1] == Column(name="label", kind="label", dtype="int64")
    found = read_back(source)
    assert list(found) == ["train", "test"]
    assert found["test"].array("x").tolist() == [9, 8, 7, 6]
    assert found["test"].values["label"] == ["b", "a", "b", "a"]
    assert found["test"].origins == [f"test row {n}" for n in range(4)]
    alone = only(tmp_path / "d" / "test")
    assert alone.array("x").tolist() == [9, 8, 7, 6]


def test_the_description_of_older_versions_is_read(tmp_path: Path) -> None:
    path = one(tmp_path / "d", [[1, 2], [3]], datasets.List(datasets.Value("int64")))
    info = json.loads((path / "dataset_info.json").read_text())
    value = {"dtype": "int64", "_type": "Value"}
    for older in ({"feature": value, "length": -1, "_type": "Sequence"}, [value]):
        info["features"] = {"a": older}
        (path / "dataset_info.json").write_text(json.dumps(info))
        assert [row.tolist() for row in only(path).values["a"]] == [[1, 2], [3]]


@pytest.mark.parametrize("size", [None, (3, 6)])
def test_pictures_are_encoded_or_resized_and_bad_ones_named(
    tmp_path: Path, size: tuple[int, int] | None
) -> None:
    contents = [png(0), b"no picture", png(2, 9), png(3)[:-30], None]
    rows = [
        {"n": n, "a": None if content is None else {"bytes": content, "path": None}, "b": png(n)}
        for n, content in enumerate(contents)
    ]
    features = {"b": datasets.Value("binary"), "n": datasets.Value("int8"), "a": datasets.Image()}
    path = saved(tmp_path / "d", rows, features)
    found = only(path, Reading(image="b", size=size))
    assert found.array("n").tolist() == [0, 2]
    assert found.origins == ["row 0", "row 2"]
    assert [message.split(":")[0] for message in found.bad] == ["row 1", "row 3", "row 4"]
    assert found.bad[2] == "row 4: the picture is missing"
    for name, kept in (("a", (contents[0], contents[2])), ("b", (png(0), png(2)))):
        if size is None:
            assert found.values[name] == list(kept)
            continue
        for row, content in zip(found.values[name], kept, strict=True):
            image = Image.open(io.BytesIO(content or b"")).resize((6, 3), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(row, np.asarray(image).transpose(2, 0, 1))


def test_pictures_are_grey_if_all_are(tmp_path: Path) -> None:
    for number, modes in enumerate((["L", "L"], ["L", "RGB"])):
        rows = [{"bytes": png(n, mode=mode), "path": None} for n, mode in enumerate(modes)]
        path = one(tmp_path / str(number), rows, datasets.Image())
        assert open_source(path, Reading()).columns[0].shape == ((1,), (3,))[number]


def test_a_picture_that_is_a_path_is_read_within_the_folder_only(tmp_path: Path) -> None:
    path = tmp_path / "d"
    (path / "files").mkdir(parents=True)
    (path / "files" / "a.png").write_bytes(png(1))

    def write(name: str) -> None:
        schema = {"a": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
        rows = [{"a": {"bytes": None, "path": name}}]
        saved(path, rows, schema)
        info = json.loads((path / "dataset_info.json").read_text())
        info["features"] = {"a": {"_type": "Image"}}
        (path / "dataset_info.json").write_text(json.dumps(info))

    write("files/a.png")
    assert only(path).values["a"] == [png(1)]
    write(str(path / "files" / "a.png"))
    assert only(path).values["a"] == [png(1)]
    write("files/b.png")
    assert only(path).bad == [
        f"row 0: the picture {path}/files/b.png cannot be read: No such file or directory"
    ]
    (tmp_path / "out.png").write_bytes(png(1))
    for name in ("../out.png", str(tmp_path / "out.png"), "/nothing.png"):
        write(name)
        with pytest.raises(DataError, match=r"row 0: .* is a path that leaves the folder"):
            read_back(open_source(path, Reading()))


@pytest.mark.parametrize("size", [None, (2, 5)])
def test_arrays_of_pictures_get_their_channels_in_front(
    tmp_path: Path, size: tuple[int, int] | None
) -> None:
    pixels = RANDOM.integers(0, 256, (2, 4, 5, 3), np.uint8)
    path = one(tmp_path / "d", pixels.tolist(), datasets.Array3D((4, 5, 3), "uint8"))
    found = only(path, Reading(image="a", size=size)).array("a")
    if size is None:
        np.testing.assert_array_equal(found, pixels.transpose(0, 3, 1, 2))
    assert found.shape == (2, 3, *(size or (4, 5)))


def test_pictures_of_different_heights_need_a_size(tmp_path: Path) -> None:
    rows = [np.full((n, 5, 3), 7 * n).tolist() for n in (2, 4)]
    path = one(tmp_path / "d", rows, datasets.Array3D((None, 5, 3), "uint8"))
    found = only(path, Reading(image="a", size=(3, 3))).array("a")
    np.testing.assert_array_equal(found, [np.full((3, 3, 3), 14), np.full((3, 3, 3), 28)])
    with pytest.raises(DataError, match=r"holds pictures of different heights: .* where a size is"):
        open_source(path, Reading(image="a"))


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        (
            [1, None],
            datasets.Value("int8"),
            "a value is missing: fill it in, drop the row, or keep",
        ),
        ([1.0, None], datasets.Value("float32"), "a value is missing"),
        (["a", None], datasets.Value("string"), "a text is missing, and no text stands for that"),
        ([0, None], datasets.ClassLabel(names=["a"]), "a value is missing"),
        (
            [0, -1],
            datasets.ClassLabel(names=["a"]),
            "the label -1 is outside of the 1 classes, which",
        ),
        ([[1], None], datasets.List(datasets.Value("int8")), "a list is missing: fill it in"),
        ([[1], [None]], datasets.List(datasets.Value("int8")), "a value is missing"),
        ([[1, 2], None], datasets.List(datasets.Value("int8"), length=2), "a list is missing"),
        ([[[1, 2]], [[1]]], datasets.Array2D((1, 2), "int8"), "a list is of length 1, but its fea"),
    ],
)
def test_a_missing_or_impossible_value_is_named_with_its_row(
    tmp_path: Path, values: list[Any], feature: Any, message: str
) -> None:
    path = one(tmp_path / "d", values, feature)
    with pytest.raises(DataError, match=f"d: row 1, column 'a': {message}"):
        only(path)


def test_missing_numbers_are_kept_as_nan(tmp_path: Path) -> None:
    rows = [
        {"i": 2, "f": None, "b": True, "w": 3, "s": [None, 1.0]},
        {"i": None, "f": 0.5, "b": None, "w": 4, "s": []},
    ]
    features = {
        "i": datasets.Value("int32"),
        "f": datasets.Value("float32"),
        "b": datasets.Value("bool"),
        "w": datasets.Value("int8"),
        "s": datasets.List(datasets.Value("float32")),
    }
    path = saved(tmp_path / "d", rows, features)
    source = open_source(path, Reading(missing="keep"))
    dtypes = {column.name: column.dtype for column in source.columns}
    assert dtypes == {"i": "float64", "f": "float32", "b": "float64", "w": "int8", "s": "float32"}
    found = only(path, Reading(missing="keep"))
    np.testing.assert_array_equal(found.array("i"), [2, np.nan])
    np.testing.assert_array_equal(found.array("f"), np.array([np.nan, 0.5], np.float32))
    np.testing.assert_array_equal(found.array("b"), [1, np.nan])
    np.testing.assert_array_equal(found.values["s"][0], np.array([np.nan, 1.0], np.float32))
    typed = Reading(missing="keep", types={"i": "float32"})
    assert only(path, typed).array("i").dtype == np.float32


@pytest.mark.parametrize(
    ("values", "feature", "message"),
    [
        ([0], datasets.Value("timestamp[s]"), r"column 'a' is a value of timestamp\[s\], which is"),
        ([b"x"], datasets.Value("binary"), "column 'a' holds bytes: name it with --image if they"),
        (
            [{"b": 1}],
            {"b": datasets.Value("int8")},
            "column 'a' is of the feature of several field",
        ),
        ([["x"]], datasets.List(datasets.Value("string")), "column 'a' is a List of text within"),
        (
            [[[1]]],
            datasets.List(datasets.List(datasets.Value("int8"))),
            "column 'a' is a List of sequence within, which is not read: numbers, bool, strings",
        ),
        (
            [{"en": "a"}],
            datasets.Translation(languages=["en"]),
            "column 'a' is of the feature Translation, which is not read: .* with --type a=skip",
        ),
    ],
)
def test_other_features_are_refused_by_name_and_can_be_left_out(
    tmp_path: Path, values: list[Any], feature: Any, message: str
) -> None:
    rows = [{"a": value, "b": 1} for value in values]
    path = saved(tmp_path / "d", rows, {"a": feature, "b": datasets.Value("int8")})
    with pytest.raises(DataError, match=message):
        open_source(path, Reading())
    assert only(path, Reading(types={"a": "skip"})).array("b").tolist() == [1]


def test_labels_are_named_or_called_so_or_of_their_class(tmp_path: Path) -> None:
    rows = [{"who": "b", "label": 2, "c": 0}, {"who": "a", "label": 0, "c": 1}]
    features = {
        "who": datasets.Value("string"),
        "label": datasets.Value("int64"),
        "c": datasets.ClassLabel(names=["n", "m"]),
    }
    path = saved(tmp_path / "d", rows, features)
    kinds = {c.name: (c.kind, c.classes) for c in open_source(path, Reading()).columns}
    assert kinds == {
        "who": ("text", ()),
        "label": ("label", ("0", "1", "2")),
        "c": ("label", ("n", "m")),
    }
    assert only(path).array("label").tolist() == [2, 0]
    plain = {c.name: c.kind for c in open_source(path, Reading(label="who")).columns}
    assert plain == {"who": "label", "label": "number", "c": "label"}
    typed = Reading(types={"label": "float32", "who": "label"})
    plain = {c.name: c.kind for c in open_source(path, typed).columns}
    assert plain == {"who": "label", "label": "number", "c": "label"}
    found = only(path, Reading(split_by="c", stack={"x": ("*",)}, types={"label": "int8"}))
    assert found.values["c"] == ["n", "m"]
    np.testing.assert_array_equal(found.array("x"), [[2], [0]])


def test_y_is_no_label_in_a_table(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", [{"x": 1, "y": 2}], {n: datasets.Value("int64") for n in "xy"})
    assert [column.kind for column in open_source(path, Reading()).columns] == ["number"] * 2
    (tmp_path / "a.csv").write_text("x,y,labels\n1,2,3\n")
    kinds = [column.kind for column in detect.open_source(tmp_path / "a.csv", Reading()).columns]
    assert kinds == ["number", "number", "label"]


def test_detection_goes_by_the_descriptions(tmp_path: Path) -> None:
    path = one(tmp_path / "d", [1], datasets.Value("int64"))
    assert matches(path)
    assert not matches(tmp_path)
    assert not matches(path / "state.json")
    (tmp_path / "dataset_dict.json").touch()
    assert matches(tmp_path)


def test_the_library_is_not_needed(tmp_path: Path) -> None:
    path = saved(tmp_path / "d", rows_of(3), FEATURES)
    script = tmp_path / "read.py"
    script.write_text(
        "import pathlib, pickle, sys\n"
        "from data_pipeline.sources.hugging_face import open_source\n"
        "from data_pipeline.sources.source import Reading\n"
        "from tests.read_back import read_back\n"
        "rows = read_back(open_source(pathlib.Path(sys.argv[1]), Reading()))[None]\n"
        "assert 'datasets' not in sys.modules\n"
        "pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(rows))\n"
    )
    command = [sys.executable, str(script), str(path), str(tmp_path / "rows")]
    subprocess.run(command, env=clean_environment(), check=True)
    found = pickle.loads((tmp_path / "rows").read_bytes())
    expected = only(path)
    assert found.origins == expected.origins
    for name, rows in expected.values.items():
        for one_row, other in zip(found.values[name], rows, strict=True):
            np.testing.assert_array_equal(one_row, other)


@pytest.mark.parametrize("size", [None, (4, 4)])
def test_a_saved_dict_is_converted(tmp_path: Path, size: tuple[int, int] | None) -> None:
    parts = {
        part: datasets.Dataset.from_list(
            rows_of(count, start), features=datasets.Features(FEATURES)
        )
        for part, count, start in (("train", 8, 0), ("test", 4, 8))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "d")
    source = check_converted(tmp_path / "d", tmp_path / "set", Reading(size=size))
    assert type(source).__name__ == "HuggingFace"
