from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import DataError, Dataset, write_dataset
from data_pipeline.manifest import Column, ColumnStatistics, Manifest

COLUMNS = (
    Column(name="image", kind="tensor", dtype="uint8", shape=(1, 2, 3)),
    Column(name="weight", kind="number", dtype="float32"),
    Column(name="label", kind="label", dtype="int64", classes=("a", "b", "c")),
)
NUM_ROWS = 23


def some_arrays(count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(seed)
    return {
        "image": generator.integers(0, 256, (count, 1, 2, 3), dtype=np.uint8),
        "weight": generator.normal(size=count).astype(np.float32),
        "label": generator.integers(0, 3, count),
    }


ARRAYS = some_arrays(NUM_ROWS)


def write_some(folder: Path, rows_per_shard: int | None = 7) -> Manifest:
    parts = {"train": ARRAYS, "validation": some_arrays(5, seed=1)}
    return write_dataset(folder, "some", COLUMNS, parts, rows_per_shard=rows_per_shard)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "some"
    write_some(path)
    return path


def gathered(dataset: Dataset, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
    column = dataset.column(name)
    # Filled with what no row holds, so that a row left out shows.
    out = np.full((len(rows), *column.shape), 99, dtype=column.dtype)
    dataset.gather(name, rows, out)
    return out


ROWS = st.lists(st.integers(0, NUM_ROWS - 1), max_size=60)


@given(rows=ROWS)
@settings(deadline=None, max_examples=80)
def test_rows_gathered_over_uneven_shards_are_those_of_numpys_indexing(
    folder: Path, rows: list[int]
) -> None:
    dataset = Dataset(folder)
    assert [shard.rows for shard in dataset.shards] == [7, 7, 7, 2]
    chosen = np.array(rows, dtype=np.int64)
    for name, values in ARRAYS.items():
        assert np.array_equal(gathered(dataset, name, chosen), values[chosen])


@given(rows=ROWS)
@settings(deadline=None, max_examples=20)
def test_rows_gathered_from_memory_are_those_of_numpys_indexing(rows: list[int]) -> None:
    dataset = Dataset.from_arrays(ARRAYS, classes={"label": ["a", "b", "c"]})
    chosen = np.array(rows, dtype=np.int64)
    for name, values in ARRAYS.items():
        assert np.array_equal(gathered(dataset, name, chosen), values[chosen])


@pytest.mark.parametrize("rows_per_shard", [1, 22, 23, None])
def test_the_rows_do_not_depend_on_the_cut_into_shards(
    tmp_path: Path, rows_per_shard: int | None
) -> None:
    write_some(tmp_path / "some", rows_per_shard)
    dataset = Dataset(tmp_path / "some")
    backwards = np.arange(NUM_ROWS)[::-1]
    assert np.array_equal(gathered(dataset, "image", backwards), ARRAYS["image"][::-1])


@pytest.mark.parametrize("rows", [[-1], [NUM_ROWS], [0, 5, NUM_ROWS + 10], [3, -NUM_ROWS]])
def test_rows_outside_of_the_data_set_are_refused(folder: Path, rows: list[int]) -> None:
    dataset = Dataset(folder)
    with pytest.raises(IndexError) as caught:
        gathered(dataset, "weight", np.array(rows))
    assert str(caught.value) == f"{folder}:train: rows must lie in [0, 23)"


def test_an_unknown_part_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(DataError) as caught:
        Dataset(folder, "test")
    assert str(caught.value) == (
        f"{folder} has no part 'test'; its parts are ['train', 'validation']"
    )


def test_an_unknown_column_is_refused_with_those_there_are(folder: Path) -> None:
    dataset = Dataset(folder, "validation")
    message = f"{folder}:validation has no column 'x'; it has ['image', 'weight', 'label']"
    with pytest.raises(DataError) as caught:
        dataset.column("x")
    assert str(caught.value) == message
    with pytest.raises(DataError) as caught:
        dataset.gather("x", np.array([0]), np.empty(1))
    assert str(caught.value) == message


def test_opening_reads_the_manifest_and_maps_the_rows_without_a_copy(folder: Path) -> None:
    allocated = pa.total_allocated_bytes()
    dataset = Dataset(str(folder), "validation")
    assert pa.total_allocated_bytes() - allocated < 4_096
    assert (dataset.num_rows, len(dataset)) == (5, 5)
    assert dataset.column("label") == COLUMNS[2]
    assert dataset.columns == {column.name: column for column in COLUMNS}
    assert repr(dataset) == f"<Dataset {folder}:validation, 5 rows of image, weight, label>"


def test_every_part_has_the_statistics_of_the_training_part(folder: Path) -> None:
    train, validation = Dataset(folder, "train"), Dataset(folder, "validation")
    assert train.statistics == validation.statistics
    assert train.statistics["weight"].mean[0] == pytest.approx(
        float(ARRAYS["weight"].mean(dtype=np.float64)), rel=1e-12
    )


def test_a_missing_shard_is_refused_at_opening(tmp_path: Path) -> None:
    write_some(tmp_path / "some")
    missing = tmp_path / "some" / "train" / "00002.arrow"
    missing.unlink()
    with pytest.raises(DataError, match=f"shard {missing} is missing; the manifest lists it"):
        Dataset(tmp_path / "some")


@pytest.mark.parametrize("damaged", range(4))
def test_damage_to_any_shard_is_found_by_the_one_rank_that_verifies_it(
    tmp_path: Path, damaged: int
) -> None:
    write_some(tmp_path / "some")
    file = tmp_path / "some" / "train" / f"{damaged:05d}.arrow"
    content = bytearray(file.read_bytes())
    content[content.index(ARRAYS["image"][7 * damaged].tobytes())] ^= 1
    file.write_bytes(content)
    dataset = Dataset(tmp_path / "some")
    found = []
    for rank in range(3):
        try:
            dataset.verify(rank=rank, world_size=3)
        except DataError:
            found.append(rank)
    assert found == [damaged % 3]
    with pytest.raises(DataError, match=f"shard {file} is damaged"):
        dataset.verify()


def test_undamaged_data_is_verified(folder: Path) -> None:
    Dataset(folder).verify()
    Dataset.from_arrays(ARRAYS).verify()


def test_arrays_become_columns_of_float32_numbers_and_labels() -> None:
    dataset = Dataset.from_arrays(
        {
            "features": np.ones((4, 2)),
            "tokens": np.zeros((4, 3), dtype=np.int32),
            "weight": np.ones(4, dtype=np.float16),
            "label": np.array([0, 1, 1, 0], dtype=np.uint8),
        },
        classes={"label": ["no", "yes"]},
        name="mine",
    )
    assert list(dataset.columns.values()) == [
        Column(name="features", kind="tensor", dtype="float32", shape=(2,)),
        Column(name="tokens", kind="tensor", dtype="int32", shape=(3,)),
        Column(name="weight", kind="number", dtype="float32"),
        Column(name="label", kind="label", dtype="int64", classes=("no", "yes")),
    ]
    assert dataset.shards == ()
    assert repr(dataset) == "<Dataset mine, 4 rows of features, tokens, weight, label>"


def test_statistics_of_arrays_are_their_own() -> None:
    features = np.array([[1.0, 10.0], [3.0, 10.0]])
    dataset = Dataset.from_arrays(
        {"features": features, "label": np.array([2, 2])}, classes={"label": "abc"}
    )
    assert dataset.statistics == {
        "features": ColumnStatistics(
            count=2, mean=(2.0, 10.0), std=(1.0, 0.0), least=(1.0, 10.0), greatest=(3.0, 10.0)
        ),
        "label": ColumnStatistics(count=2, label_counts=(0, 0, 2)),
    }


def test_the_digest_of_arrays_changes_with_any_value_name_or_class() -> None:
    def digest(arrays: dict[str, NDArray[Any]], classes: str = "abc") -> str:
        return Dataset.from_arrays(arrays, classes={"label": classes}).digest

    other_value = {**ARRAYS, "weight": ARRAYS["weight"].copy()}
    other_value["weight"][11] = np.nextafter(other_value["weight"][11], np.float32(9))
    digests = [
        digest(ARRAYS),
        digest(other_value),
        digest(ARRAYS, classes="abd"),
        digest({key: values[:-1] for key, values in ARRAYS.items()}),
        digest({**ARRAYS, "image": ARRAYS["image"].reshape(NUM_ROWS, 1, 3, 2)}),
        digest({**ARRAYS, "image": ARRAYS["image"].astype(np.int64)}),
        digest({key: ARRAYS[key] for key in ("image", "label")}),
        digest({"picture" if key == "image" else key: v for key, v in ARRAYS.items()}),
    ]
    assert len(set(digests)) == len(digests)
    assert digest({key: values.copy() for key, values in ARRAYS.items()}) == digests[0]


def test_the_digest_of_a_folder_is_that_of_its_manifest(folder: Path, tmp_path: Path) -> None:
    again = write_some(tmp_path / "again")
    assert Dataset(folder).digest == Dataset(folder, "validation").digest == again.digest
    assert write_some(tmp_path / "cut", rows_per_shard=8).digest != again.digest


@pytest.mark.parametrize(
    ("arrays", "classes", "message"),
    [
        ({"x": np.ones(3), "y": np.ones(4)}, {}, "must have the same .* {'x': 3, 'y': 4}"),
        ({}, {}, "a data set needs at least one row, and arrays has none"),
        ({"x": np.zeros((0, 2))}, {}, "a data set needs at least one row"),
        ({"x": np.array(["a"])}, {}, "column 'x' has dtype <U1; numbers are wanted"),
        ({"x": np.array([1j])}, {}, "column 'x' has dtype complex128; numbers are wanted"),
        ({"y": np.ones(3)}, {"y": ["a"]}, r"label column 'y' must be .* not float64 of shape \(3"),
        ({"y": np.ones((3, 1), int)}, {"y": ["a", "b"]}, r"not int64 of shape \(3, 1\)"),
        ({"y": np.array([0, 2])}, {"y": ["a", "b"]}, "labels from 0 to 2, but 2 classes"),
        ({"x": np.ones(3)}, {"y": ["a"]}, r"classes name \['y'\], but the columns are \['x'\]"),
        ({"x": np.array([1.0, np.nan])}, {}, r"column 'x' has NaN or infinity in rows \[1\]"),
    ],
)
def test_arrays_that_make_no_data_set_are_refused(
    arrays: dict[str, NDArray[Any]], classes: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.from_arrays(arrays, classes=classes)
