import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from data_pipeline import DataError
from data_pipeline.sources.hugging_face import open_source
from data_pipeline.sources.source import Reading
from tests.read_back import only_part
from tests.source_files import one, png, saved


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "d", list(range(5000)), datasets.Value("int64"))
    file = next(path.glob("*.arrow"))
    content = file.read_bytes()
    for cut in (1, 500, len(content) - 4, len(content)):
        file.write_bytes(content[: len(content) - cut])
        with pytest.raises(DataError, match=r"\.arrow is cut short: its end is missing; save the"):
            open_source(path, Reading())
    file.write_bytes(content[:200] + content[-8:])
    with pytest.raises(DataError, match=r"\.arrow is damaged or cannot be read: "):
        open_source(path, Reading())
    file.unlink()
    with pytest.raises(DataError, match=r"\.arrow"):
        open_source(path, Reading())


def test_offsets_that_lead_out_of_a_file_are_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "d", ["abcdefgh"] * 3, datasets.Value("string"))
    file = next(path.glob("*.arrow"))
    offsets = np.array([0, 8, 16, 24], np.int32).tobytes()
    content = file.read_bytes()
    assert content.count(offsets) == 1
    wrong = np.array([0, 8, 2**30, 24], np.int32).tobytes()
    file.write_bytes(content.replace(offsets, wrong))
    with pytest.raises(DataError, match=r"\.arrow is damaged or cannot be read: "):
        only_part(open_source(path, Reading()))


@pytest.mark.parametrize(
    "feature", [datasets.Image(), datasets.Value("string"), [datasets.Value("int32")]]
)
def test_whatever_bytes_are_changed_nothing_but_a_data_error_comes_of_it(
    tmp_path: Path, feature: Any
) -> None:
    values: dict[bool, list[Any]] = {
        True: [{"bytes": png(n), "path": None} for n in range(9)],
        False: [["é" * n, [n] * n][isinstance(feature, list)] for n in range(9)],
    }
    path = one(tmp_path / "d", values[isinstance(feature, datasets.Image)], feature)
    file = next(path.glob("*.arrow"))
    content = file.read_bytes()
    random = np.random.default_rng(0)
    found = 0
    for _ in range(150):
        changed = np.frombuffer(content, np.uint8).copy()
        places = random.integers(0, len(changed), 3)
        changed[places] = random.integers(0, 256, 3)
        file.write_bytes(changed.tobytes())
        try:
            only_part(open_source(path, Reading()))
        except DataError:
            found += 1
    assert found


def test_features_that_are_described_in_another_way_are_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "d", [1], datasets.Value("int64"))
    info = json.loads((path / "dataset_info.json").read_text())
    info["features"]["a"] = {"_type": "Array2D"}
    (path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="its features are not described as they should be: KeyErr"):
        open_source(path, Reading())


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json"])
def test_descriptions_that_are_missing_or_damaged_are_refused(tmp_path: Path, name: str) -> None:
    path = one(tmp_path / "d", [1], datasets.Value("int64"))
    (path / name).write_text("{")
    with pytest.raises(DataError, match=f"{name} cannot be read: "):
        open_source(path, Reading())
    (path / name).write_text("[]")
    with pytest.raises(DataError, match=f"{name} is no description of a data set: save"):
        open_source(path, Reading())
    (path / name).write_text("{}")
    with pytest.raises(DataError, match=f"{name} (lists no data files|describes no features)"):
        open_source(path, Reading())
    (path / name).unlink()
    with pytest.raises(
        DataError, match=f"holds no {name}: give a folder that `save_to_disk` wrote"
    ):
        open_source(path, Reading())


def test_files_and_splits_outside_of_the_folder_are_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "d", [1], datasets.Value("int64"))
    one(tmp_path / "other", [1], datasets.Value("int64"))
    (path / "dataset_dict.json").write_text('{"splits": ["../other"]}')
    with pytest.raises(DataError, match="is a path that leaves the folder"):
        open_source(path, Reading())
    (path / "dataset_dict.json").write_text('{"splits": []}')
    with pytest.raises(DataError, match=r"dataset_dict\.json names no splits"):
        open_source(path, Reading())
    (path / "dataset_dict.json").unlink()
    state = json.loads((path / "state.json").read_text())
    state["_data_files"] = [{"filename": "../other/data-00000-of-00001.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="is a path that leaves the folder"):
        open_source(path, Reading())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="picks its rows by indices, as older versions"):
        open_source(path, Reading())


def test_splits_of_other_features_or_without_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.mkdir()
    one(path / "train", [1], datasets.Value("int64"))
    one(path / "test", [1], datasets.Value("int8"))
    (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match="split 'test' has other features than 'train'"):
        open_source(path, Reading())
    full = datasets.Dataset.from_dict({"a": [1]})
    datasets.DatasetDict({"train": full, "test": full.select([])}).save_to_disk(tmp_path / "e")
    with pytest.raises(DataError, match=r"split 'test' of .* has no rows: take it out"):
        open_source(tmp_path / "e", Reading())


def test_a_file_without_a_column_is_refused(tmp_path: Path) -> None:
    path = one(tmp_path / "d", [1], datasets.Value("int64"))
    info = json.loads((path / "dataset_info.json").read_text())
    info["features"]["b"] = info["features"]["a"]
    (path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"has the columns \['a'\], not one 'b'"):
        open_source(path, Reading())


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        (Reading(label="q"), r"has no column 'q', which --label names; its columns are \['i', "),
        (Reading(label="l"), "'l' is to be the label, but it is a feature of sequence, int8"),
        (Reading(label="i"), "column 'i' has the label -1: labels are numbered from 0"),
        (Reading(types={"c": "int8"}), "column 'c' is a ClassLabel: it can have no other --type"),
        (Reading(types={"s": "int8"}), "column 's' holds strings: neither numbers nor pictures"),
        (Reading(types=dict.fromkeys("ilcs", "skip")), "every column is left out by --type"),
        (Reading(image="i"), "column 'i' holds a number each: a column of pictures holds arrays"),
        (Reading(size=(2, 2)), r"a size is given, but no column of \['i', .* is one of pictures"),
        (
            Reading(stack={"x": ("s",)}),
            "'x' is to be stacked of 's', which is no column of numbers",
        ),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    tmp_path: Path, reading: Reading, message: str
) -> None:
    features = {
        "i": datasets.Value("int8"),
        "l": datasets.List(datasets.Value("int8")),
        "c": datasets.ClassLabel(names=["n"]),
        "s": datasets.Value("string"),
    }
    path = saved(tmp_path / "d", [{"i": -1, "l": [], "c": 0, "s": "x"}], features)
    with pytest.raises(DataError, match=message):
        open_source(path, reading)


def test_a_value_that_is_not_of_the_type_given_is_named(tmp_path: Path) -> None:
    path = one(tmp_path / "d", [1, 300], datasets.Value("int64"))
    with pytest.raises(DataError, match="row 1, column 'a': it holds 300, which is no uint8: give"):
        only_part(open_source(path, Reading(types={"a": "uint8"})))
