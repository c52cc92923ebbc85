from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from data_pipeline.augment import Draw, LabelNoise, LabelSmoothing, Samples, TargetNoise
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column

COLUMNS = {
    "x": Column(name="x", kind="tensor", dtype="float32", shape=(1,)),
    "label": Column(name="label", kind="label", dtype="int64", classes=("a", "b", "c", "d")),
    "one": Column(name="one", kind="label", dtype="int64", classes=("a",)),
    "number": Column(name="number", kind="number", dtype="float32"),
    "vector": Column(name="vector", kind="tensor", dtype="float32", shape=(3,)),
}


def changed(transform: Any, target: NDArray[Any], name: str | None = "label") -> NDArray[Any]:
    arrays = {"x": np.zeros((len(target), 1), np.float32), name or "label": target}
    samples = Samples(arrays, COLUMNS, "x", name)
    transform(samples, Draw(1, 2, 3, 40, len(target)))
    assert list(samples.arrays) == list(arrays)
    return samples.arrays[name or "label"]


def test_smoothed_labels_are_those_of_the_formula() -> None:
    smoothed = changed(LabelSmoothing(0.2), np.array([1, 3]))
    assert smoothed.dtype == np.float32
    expected = [[0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]]
    np.testing.assert_allclose(smoothed, expected, rtol=1e-6)


def test_the_loss_of_smoothed_labels_is_torchs_with_label_smoothing() -> None:
    labels = np.array([0, 3, 2, 1, 1])
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    smoothed = torch.from_numpy(changed(LabelSmoothing(0.1), labels))
    by_torch = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(labels), label_smoothing=0.1
    )
    assert torch.nn.functional.cross_entropy(logits, smoothed).item() == pytest.approx(
        by_torch.item(), rel=1e-5
    )


def test_soft_labels_are_smoothed_too() -> None:
    soft = np.array([[0.5, 0.5, 0, 0]], np.float32)
    smoothed = changed(LabelSmoothing(0.4), soft)
    np.testing.assert_allclose(smoothed, [[0.4, 0.4, 0.1, 0.1]], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_label_noise_replaces_labels_by_all_others_equally_often(dtype: str) -> None:
    labels = np.full(6_000, 2, dtype)
    noisy = changed(LabelNoise(0.3), labels)
    assert noisy.dtype == labels.dtype
    counts = np.bincount(noisy, minlength=4)
    assert stats.binomtest(int(6_000 - counts[2]), 6_000, 0.3).pvalue > 1e-3
    assert stats.chisquare(counts[[0, 1, 3]]).pvalue > 1e-3


def test_label_noise_of_probability_0_or_1_changes_none_or_all() -> None:
    labels = np.arange(400) % 4
    assert np.array_equal(changed(LabelNoise(0.0), labels), labels)
    assert not (changed(LabelNoise(1.0), labels) == labels).any()


@pytest.mark.parametrize(("name", "shape"), [("number", (6_000,)), ("vector", (2_000, 3))])
def test_target_noise_is_normal_with_its_deviation(name: str, shape: tuple[int, ...]) -> None:
    noisy = changed(TargetNoise(2.5), np.full(shape, 10, np.float32), name)
    assert noisy.shape == shape
    assert stats.kstest(noisy.ravel(), stats.norm(10, 2.5).cdf).pvalue > 1e-3


def test_whole_numbers_become_floats_under_noise() -> None:
    noisy = changed(TargetNoise(0.0), np.arange(5, dtype=np.int32), "number")
    assert noisy.dtype == np.float32
    assert noisy.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelSmoothing(1.5), r"LabelSmoothing\(amount=1.5\): amount must lie in \[0, 1\]"),
        (lambda: LabelNoise(-1), r"LabelNoise\(probability=-1\): probability must lie in \[0, 1\]"),
        (lambda: TargetNoise(-1), r"TargetNoise\(std=-1\): std must be 0 or more"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("transform", [LabelSmoothing(0.1), LabelNoise(0.1), TargetNoise(1)])
def test_a_run_without_a_target_is_refused(transform: Any) -> None:
    name = type(transform).__name__
    with pytest.raises(DataError, match=rf"{name} changes the target, but this run has none"):
        changed(transform, np.zeros(3, int), None)


def test_targets_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match=r"LabelSmoothing works on labels, but column 'number' is"):
        changed(LabelSmoothing(0.1), np.zeros(3, np.float32), "number")
    with pytest.raises(DataError, match=r"LabelNoise changes labels that are classes, but .*float"):
        changed(LabelNoise(0.1), np.zeros((3, 4), np.float32))
    with pytest.raises(DataError, match=r"LabelNoise changes labels that are classes, .*number"):
        changed(LabelNoise(0.1), np.zeros(3, np.int64), "number")
    with pytest.raises(DataError, match=r"LabelNoise needs two classes, but column 'one' has 1"):
        changed(LabelNoise(0.1), np.zeros(3, np.int64), "one")
    with pytest.raises(DataError, match=r"TargetNoise changes numbers, but column 'label' is a la"):
        changed(TargetNoise(0.1), np.zeros(3, np.int64))
