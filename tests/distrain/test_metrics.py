"""Metrics over a data set that is split at random, against scikit-learn over the whole."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from data_pipeline import DataError
from distrain.config import METRICS
from distrain.coordinator.metrics import MetricSet, is_error
from distrain.errors import ConfigError

OF_CLASSES = [name for name in METRICS if name not in ("mse", "mae")]


def over_a_split(
    metrics: MetricSet, outputs: torch.Tensor, target: torch.Tensor, cuts: list[int]
) -> dict[str, float]:
    """The scores from the sum of the words of each piece."""
    float64 = torch.zeros(metrics.num_float64, dtype=torch.float64)
    int64 = torch.zeros(metrics.num_int64, dtype=torch.int64)
    for start, stop in pairwise([0, *sorted(cuts), len(target)]):
        if start < stop:
            sums, counts = torch.full_like(float64, 9.0), torch.full_like(int64, 9)
            metrics.update(outputs[start:stop], target[start:stop], sums, counts)
            float64 += sums
            int64 += counts
    return metrics.scores(float64, int64)


def of_scikit_learn(actual: torch.Tensor, predicted: torch.Tensor) -> dict[str, float]:
    actual, predicted = actual.reshape(-1), predicted.reshape(-1)
    found = {"accuracy": sklearn.accuracy_score(actual, predicted)}
    for name, score in (
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
        ("f1", sklearn.f1_score),
    ):
        found[name] = score(actual, predicted, average="macro", zero_division=0)
        found[f"{name}_micro"] = score(actual, predicted, average="micro", zero_division=0)
    return found


@st.composite
def problems(draw: st.DrawFn, *, columns_more: int = 0) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Classes C, outputs `(N, C + more)` and targets `(N,)` in which some classes may be absent."""
    num_classes, num_rows = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    occurring = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    outputs = torch.randn(num_rows, num_classes + columns_more, generator=generator)
    chosen = torch.randint(len(occurring), (num_rows,), generator=generator)
    return num_classes, outputs, torch.tensor(occurring)[chosen]


CUTS = st.lists(st.integers(0, 40), max_size=5)


def inside(cuts: list[int], num_rows: int) -> list[int]:
    return [min(cut, num_rows) for cut in cuts]


@given(problem=problems(), cuts=CUTS)
@settings(deadline=None, max_examples=60)
def test_classification_is_that_of_scikit_learn_on_any_split(
    problem: tuple[int, torch.Tensor, torch.Tensor], cuts: list[int]
) -> None:
    num_classes, outputs, target = problem
    metrics = MetricSet(OF_CLASSES, num_classes)
    found = over_a_split(metrics, outputs, target, inside(cuts, len(target)))
    assert list(found) == OF_CLASSES
    assert found == pytest.approx(of_scikit_learn(target, outputs.argmax(1)), abs=1e-12)


@given(problem=problems(columns_more=1), cuts=CUTS)
@settings(deadline=None, max_examples=30)
def test_a_prediction_beyond_the_last_class_counts_as_wrong(
    problem: tuple[int, torch.Tensor, torch.Tensor], cuts: list[int]
) -> None:
    num_classes, outputs, target = problem
    metrics = MetricSet(OF_CLASSES, num_classes)
    found = over_a_split(metrics, outputs, target, inside(cuts, len(target)))
    assert found == pytest.approx(of_scikit_learn(target, outputs.argmax(1)), abs=1e-12)


@given(problem=problems(), cuts=CUTS)
@settings(deadline=None, max_examples=30)
def test_ignored_targets_are_passed_over(
    problem: tuple[int, torch.Tensor, torch.Tensor], cuts: list[int]
) -> None:
    num_classes, outputs, target = problem
    target = torch.where(outputs[:, 0] > 0.3, -100, target)
    kept = target != -100
    found = over_a_split(
        MetricSet(OF_CLASSES, num_classes, ignore_index=-100),
        outputs,
        target,
        inside(cuts, len(target)),
    )
    if kept.any():
        expected = of_scikit_learn(target[kept], outputs[kept].argmax(1))
        assert found == pytest.approx(expected, abs=1e-12)
    else:
        assert all(math.isnan(score) for score in found.values())


@pytest.mark.parametrize("shape", [(30,), (30, 1)])
@pytest.mark.parametrize("threshold", [0.0, 0.5])
@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_a_single_output_means_class_1_above_the_threshold(
    shape: tuple[int, ...], threshold: float, kind: torch.dtype
) -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(shape), torch.randint(2, (30,)).to(kind)
    found = over_a_split(MetricSet(OF_CLASSES, 2, threshold=threshold), outputs, target, [3, 17])
    predicted = (outputs.reshape(-1) > threshold).long()
    assert found == pytest.approx(of_scikit_learn(target.long(), predicted), abs=1e-12)


def test_places_of_an_image_count_one_by_one() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(7, 4, 3, 5), torch.randint(4, (7, 3, 5))
    found = over_a_split(MetricSet(OF_CLASSES, 4), outputs, target, [2, 6])
    assert found == pytest.approx(of_scikit_learn(target, outputs.argmax(1)), abs=1e-12)


@given(problem=problems(), cuts=CUTS)
@settings(deadline=None, max_examples=30)
def test_of_probabilities_the_largest_is_the_class(
    problem: tuple[int, torch.Tensor, torch.Tensor], cuts: list[int]
) -> None:
    num_classes, outputs, target = problem
    metrics = MetricSet(OF_CLASSES, num_classes)
    soft = 0.7 * torch.nn.functional.one_hot(target, num_classes) + 0.3 / num_classes
    found = over_a_split(metrics, outputs, soft, inside(cuts, len(target)))
    assert found == pytest.approx(of_scikit_learn(target, outputs.argmax(1)), abs=1e-12)


def test_probabilities_of_the_places_of_an_image_count_one_by_one() -> None:
    torch.manual_seed(1)
    outputs, target = torch.randn(7, 4, 3, 5), torch.rand(7, 4, 3, 5)
    found = over_a_split(MetricSet(OF_CLASSES, 4), outputs, target, [2, 6])
    expected = of_scikit_learn(target.argmax(1), outputs.argmax(1))
    assert found == pytest.approx(expected, abs=1e-12)


def test_a_hand_computed_confusion() -> None:
    target = torch.tensor([0, 0, 0, 1, 1, 2])
    outputs = torch.nn.functional.one_hot(torch.tensor([0, 0, 1, 1, 2, 2]), 4).float()
    found = over_a_split(
        MetricSet(("accuracy", "precision", "recall", "f1"), 4), outputs, target, []
    )
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["precision"] == pytest.approx((2 / 2 + 1 / 2 + 1 / 2) / 3)
    assert found["recall"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 1) / 3)
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)


@given(num_rows=st.integers(1, 50), columns=st.integers(1, 3), seed=st.integers(0, 999), cuts=CUTS)
@settings(deadline=None, max_examples=30)
def test_errors_are_those_of_scikit_learn_on_any_split(
    num_rows: int, columns: int, seed: int, cuts: list[int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(num_rows, columns, generator=generator)
    target = torch.randn(num_rows, columns, generator=generator)
    found = over_a_split(MetricSet(("mae", "mse")), outputs, target, inside(cuts, num_rows))
    expected = {
        "mae": sklearn.mean_absolute_error(target.double(), outputs.double()),
        "mse": sklearn.mean_squared_error(target.double(), outputs.double()),
    }
    assert list(found) == ["mae", "mse"]
    assert found == pytest.approx(expected, rel=1e-12)


def test_squares_are_summed_in_float64() -> None:
    outputs, target = torch.tensor([4096.0, 1.0, 1.0]), torch.zeros(3)
    found = over_a_split(MetricSet(("mse",)), outputs, target, [])
    assert found["mse"] * 3 == 2.0**24 + 2.0


def test_classes_and_errors_go_together() -> None:
    outputs, target = torch.tensor([0.9, -0.2, 0.3]), torch.tensor([1.0, 0.0, 0.0])
    found = over_a_split(MetricSet(("mae", "accuracy"), 2), outputs, target, [1])
    assert found == pytest.approx({"mae": (0.1 + 0.2 + 0.3) / 3, "accuracy": 2 / 3}, abs=1e-7)


def test_without_a_sample_there_is_no_score() -> None:
    metrics = MetricSet(METRICS, 3)
    found = metrics.scores(
        torch.zeros(metrics.num_float64, dtype=torch.float64),
        torch.zeros(metrics.num_int64, dtype=torch.int64),
    )
    assert all(math.isnan(score) for score in found.values())
    assert list(found) == list(METRICS)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused_with_the_range(label: int) -> None:
    with pytest.raises(DataError, match=r"labels from -?\d to \d; with 3 classes .* \[0, 3\)"):
        over_a_split(MetricSet(("accuracy",), 3), torch.randn(2, 3), torch.tensor([1, label]), [])


def test_outputs_that_do_not_fit_the_target_are_refused_with_both_shapes() -> None:
    with pytest.raises(
        ConfigError, match=r"outputs of shape \(4, 2, 5\) .* target of shape \(4,\)"
    ):
        over_a_split(MetricSet(("f1",), 2), torch.randn(4, 2, 5), torch.zeros(4).long(), [])
    with pytest.raises(
        ConfigError, match=r"outputs of shape \(4, 1\) with a target of shape \(4,\)"
    ):
        over_a_split(MetricSet(("mse",)), torch.randn(4, 1), torch.zeros(4), [])


def test_an_unknown_metric_is_refused_with_the_near_names() -> None:
    with pytest.raises(ConfigError, match=r"no metric 'f1_macro'; did you mean f1_micro\?"):
        MetricSet(("f1_macro",), 3)


@pytest.mark.parametrize("num_classes", [None, 0])
def test_a_metric_of_classes_without_classes_is_refused(num_classes: int | None) -> None:
    with pytest.raises(ConfigError, match=r"recall needs a target column .* there are mse, mae"):
        MetricSet(("mse", "recall"), num_classes)


def test_no_metrics_need_no_words() -> None:
    metrics = MetricSet(())
    assert (metrics.num_float64, metrics.num_int64) == (0, 0)
    assert metrics.scores(torch.zeros(0), torch.zeros(0)) == {}


def test_less_is_better_for_losses_and_errors_only() -> None:
    better_low = {name for name in ("loss", *METRICS) if is_error(name)}
    assert better_low == {"loss", "mse", "mae"}
    assert all(is_error(f"val_{name}") == is_error(name) for name in ("loss", *METRICS))


def test_counts_are_taken_without_a_gradient() -> None:
    outputs = torch.randn(4, 3, requires_grad=True)
    found = over_a_split(MetricSet(("accuracy",), 3), outputs, outputs.detach().argmax(1), [])
    assert found == {"accuracy": 1.0}
