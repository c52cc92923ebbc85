import errno
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import datasets

from data_pipeline import DataError, Dataset, StorageError
from data_pipeline.sources.bundled import make_bundled

NAMES = ["iris", "wine", "breast_cancer", "diabetes", "digits"]
NUM_ROWS = {"iris": 150, "wine": 178, "breast_cancer": 569, "diabetes": 442, "digits": 1797}


@dataclass(frozen=True)
class Original:
    """A set as scikit-learn gives it."""

    inputs: NDArray[Any]
    targets: NDArray[Any]
    classes: tuple[str, ...]


def original(name: str) -> Original:
    if name == "diabetes":
        bunch = datasets.load_diabetes(scaled=False)
        return Original(bunch.data.astype(np.float32), bunch.target.astype(np.float32), ())
    bunch = getattr(datasets, f"load_{name}")()
    inputs = bunch.images[:, None] if name == "digits" else bunch.data.astype(np.float32)
    return Original(inputs, bunch.target, tuple(str(label) for label in bunch.target_names))


def whole(dataset: Dataset, name: str) -> NDArray[Any]:
    column = dataset.column(name)
    out = np.empty((len(dataset), *column.shape), dtype=column.dtype)
    dataset.gather(name, np.arange(len(dataset)), out)
    return out


def column_names(name: str) -> tuple[str, str]:
    return (
        "image" if name == "digits" else "features",
        "target" if name == "diabetes" else "label",
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundled")
    for name in NAMES:
        make_bundled(name, root / name)
    return {name: root / name for name in NAMES}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_fifth_of_the_rows_rounded_up_is_for_validation(
    folders: dict[str, Path], name: str
) -> None:
    num_rows = {part: len(Dataset(folders[name], part)) for part in ("train", "validation")}
    num_validation = -(-NUM_ROWS[name] // 5)
    assert num_rows == {"train": NUM_ROWS[name] - num_validation, "validation": num_validation}


@pytest.mark.parametrize("name", NAMES)
def test_both_parts_together_are_scikit_learns_rows(folders: dict[str, Path], name: str) -> None:
    first = original(name)
    counts: Counter[tuple[bytes, float]] = Counter()
    for part in ("train", "validation"):
        dataset = Dataset(folders[name], part)
        inputs, targets = (whole(dataset, column) for column in column_names(name))
        assert inputs.shape[1:] == first.inputs.shape[1:]
        rows = zip(inputs.astype(np.float64), targets.tolist(), strict=True)
        counts.update((row.tobytes(), target) for row, target in rows)
    expected = zip(first.inputs.astype(np.float64), first.targets.tolist(), strict=True)
    assert counts == Counter((row.tobytes(), target) for row, target in expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_column_says_what_it_holds(folders: dict[str, Path], name: str) -> None:
    columns = Dataset(folders[name]).columns
    inputs, target = column_names(name)
    assert list(columns) == [inputs, target]
    assert columns[inputs].dtype == ("uint8" if name == "digits" else "float32")
    assert columns[target].classes == original(name).classes
    assert columns[target].kind == ("number" if name == "diabetes" else "label")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "diabetes"])
@pytest.mark.parametrize("fraction", [0.2, 0.37])
def test_every_class_has_its_share_of_both_parts_within_one_row(
    tmp_path: Path, name: str, fraction: float
) -> None:
    make_bundled(name, tmp_path / name, validation_fraction=fraction)
    label_counts = np.bincount(original(name).targets)
    found = np.bincount(whole(Dataset(tmp_path / name, "validation"), "label"))
    share = found.sum() / label_counts.sum()
    assert np.abs(found - share * label_counts).max() <= 1.0


def test_every_decile_of_a_regression_target_has_its_share_within_one_row(
    folders: dict[str, Path],
) -> None:
    targets = original("diabetes").targets
    edges = np.quantile(targets, np.arange(1, 10) / 10)
    in_all = np.bincount(np.searchsorted(edges, targets))
    found = np.searchsorted(edges, whole(Dataset(folders["diabetes"], "validation"), "target"))
    share = len(found) / len(targets)
    assert np.abs(np.bincount(found) - share * in_all).max() <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_rows_keep_their_order_within_a_part(folders: dict[str, Path], name: str) -> None:
    first = original(name)
    places: dict[bytes, list[int]] = {}
    for number, row in enumerate(first.inputs.astype(np.float64)):
        places.setdefault(row.tobytes(), []).append(number)
    inputs = whole(Dataset(folders[name]), column_names(name)[0]).astype(np.float64)
    last = -1
    for row in inputs:
        # Of rows that are equal, any will do that comes later.
        last = min(place for place in places[row.tobytes()] if place > last)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_numpys_on_the_training_part(folders: dict[str, Path], name: str) -> None:
    dataset = Dataset(folders[name])
    inputs, target = column_names(name)
    values = whole(dataset, inputs).astype(np.float64)
    axes = (0, 2, 3) if name == "digits" else (0,)
    for part in ("train", "validation"):
        statistics = Dataset(folders[name], part).statistics
        assert statistics[inputs].count == len(dataset)
        assert statistics[inputs].mean == pytest.approx(values.mean(axis=axes), rel=1e-12)
        assert statistics[inputs].std == pytest.approx(values.std(axis=axes), rel=1e-12)
        if name == "diabetes":
            targets = whole(dataset, target).astype(np.float64)
            assert statistics[target].mean == pytest.approx((targets.mean(),), rel=1e-12)
        else:
            counts = np.bincount(whole(dataset, target))
            assert statistics[target].label_counts == tuple(counts.tolist())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_are_written_every_time(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    make_bundled(name, tmp_path / name)
    files = names(folders[name])
    assert files == names(tmp_path / name)
    for file in files:
        if (tmp_path / name / file).is_file():
            assert (tmp_path / name / file).read_bytes() == (folders[name] / file).read_bytes()
    assert Dataset(tmp_path / name).digest == Dataset(folders[name]).digest


def test_another_seed_is_another_split_of_the_same_size(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    manifest = make_bundled("iris", tmp_path / "iris", seed=1)
    dataset = Dataset(tmp_path / "iris")
    assert manifest.digest != Dataset(folders["iris"]).digest
    assert len(dataset) == len(Dataset(folders["iris"]))
    dataset.verify()


@pytest.mark.parametrize(("fraction", "num_validation"), [(0.5, 75), (0.1, 15), (0.9, 135)])
def test_the_fraction_for_validation_can_be_set(
    tmp_path: Path, fraction: float, num_validation: int
) -> None:
    manifest = make_bundled("iris", tmp_path / "iris", validation_fraction=fraction)
    assert manifest.parts["validation"].rows == num_validation
    assert manifest.parts["train"].rows == 150 - num_validation


def test_the_rows_of_a_shard_can_be_set(tmp_path: Path) -> None:
    manifest = make_bundled("iris", tmp_path / "iris", rows_per_shard=50)
    assert [shard.rows for shard in manifest.parts["train"].shards] == [50, 50, 20]


def test_an_unknown_name_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        make_bundled("mnist", tmp_path / "mnist")
    assert str(caught.value) == (
        "no bundled data set is called 'mnist'; "
        "there are iris, wine, breast_cancer, diabetes, digits"
    )


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(DataError) as caught:
        make_bundled("iris", tmp_path / "iris", validation_fraction=fraction)
    assert str(caught.value) == f"the validation fraction is {fraction}; give one within (0, 1)"
    assert names(tmp_path) == []


@pytest.mark.parametrize(("fraction", "reason"), [(0.001, "classes = 3"), (0.999, "be empty")])
def test_a_fraction_that_leaves_a_part_without_a_class_is_refused(
    tmp_path: Path, fraction: float, reason: str
) -> None:
    with pytest.raises(
        DataError,
        match=f"iris cannot be split with a validation fraction of {fraction}: .*{reason}",
    ):
        make_bundled("iris", tmp_path / "iris", validation_fraction=fraction)
    assert names(tmp_path) == []


def test_a_destination_that_holds_something_is_refused_and_unharmed(tmp_path: Path) -> None:
    folder = tmp_path / "iris"
    folder.mkdir()
    (folder / "thesis.txt").write_text("the only copy")
    with pytest.raises(DataError) as caught:
        make_bundled("iris", folder)
    assert str(caught.value) == (
        f"{folder} exists already: name another destination, or remove it first"
    )
    assert names(tmp_path) == ["iris", "iris/thesis.txt"]
    assert (folder / "thesis.txt").read_text() == "the only copy"


# Three shards, the manifest, its name, and three folders are synced before the name is taken.
@pytest.mark.parametrize("num_written", range(8))
def test_a_disk_that_fills_up_at_any_instant_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    calls = iter(range(100))
    fsync = os.fsync

    def filling_up(handle: int) -> None:
        if next(calls) == num_written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", filling_up)
    with pytest.raises(StorageError, match=r"cannot write .*: No space left on device"):
        make_bundled("iris", tmp_path / "iris", rows_per_shard=60)
    assert names(tmp_path) == []
    # With room again, the same command does it.
    monkeypatch.undo()
    make_bundled("iris", tmp_path / "iris", rows_per_shard=60)
    Dataset(tmp_path / "iris").verify()
