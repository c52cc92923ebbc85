"""Metrics over a data set that is split at random, against scikit-learn over the whole."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from data_pipeline import DataError, Dataset
from distrain.coordinator.error_metrics import center_of
from distrain.coordinator.metrics import MetricSet
from distrain.errors import ConfigError
from distrain.metric_names import EXAMPLES, METRICS, is_error, metric

OF_CLASSES = [name for name in METRICS if metric(name).kind == "classes"]
OF_NUMBERS = ("mae", "mse", "huber", "huber_0.3", "r2")


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
    recalls = sklearn.recall_score(
        actual, predicted, average=None, labels=sorted(set(actual.tolist())), zero_division=0
    )
    found = {
        "accuracy": sklearn.accuracy_score(actual, predicted),
        # balanced_accuracy_score warns where a class is predicted that no target has.
        "balanced_accuracy": float(np.mean(recalls)),
    }
    for name, score in (
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
        ("f1", sklearn.f1_score),
    ):
        found[name] = score(actual, predicted, average="macro", zero_division=0)
        for average in ("micro", "weighted"):
            found[f"{name}_{average}"] = score(actual, predicted, average=average, zero_division=0)
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


@given(problem=problems(), cuts=CUTS, ties=st.booleans())
@settings(deadline=None, max_examples=40)
def test_top_k_is_that_of_scikit_learn_with_the_first_of_equals_higher(
    problem: tuple[int, torch.Tensor, torch.Tensor], cuts: list[int], ties: bool
) -> None:
    num_classes, outputs, target = problem
    outputs = outputs.round() if ties else outputs
    names = [f"top_{k}" for k in range(1, num_classes)]
    metrics = MetricSet(["accuracy", *names], num_classes)
    found = over_a_split(metrics, outputs, target, inside(cuts, len(target)))
    # scikit-learn takes the last of equals as the higher one: so it is given the classes backwards.
    scores, labels = outputs.flip(1), num_classes - 1 - target
    for k in range(1, num_classes):
        if num_classes == 2:  # of which scikit-learn wants one score
            expected = sklearn.accuracy_score(target, outputs.argmax(1))
        else:
            expected = sklearn.top_k_accuracy_score(labels, scores, k=k, labels=range(num_classes))
        assert found[f"top_{k}"] == pytest.approx(expected, abs=1e-12)
    assert found["top_1"] == found["accuracy"]


def test_a_score_that_is_nan_is_no_hit() -> None:
    outputs = torch.tensor([[0.0, math.nan, 1.0], [math.nan, 5.0, 1.0]])
    found = over_a_split(MetricSet(("top_1", "top_2"), 3), outputs, torch.tensor([1, 1]), [])
    assert found == {"top_1": 0.0, "top_2": 0.5}


@given(problem=problems(), cuts=CUTS)
@settings(deadline=None, max_examples=30)
def test_coverage_and_perplexity_are_those_of_one_pass_over_the_probabilities(
    problem: tuple[int, torch.Tensor, torch.Tensor], cuts: list[int]
) -> None:
    num_classes, outputs, target = problem
    names = ("coverage_0.5", "covered_accuracy_0.5", "perplexity")
    found = over_a_split(MetricSet(names, num_classes), outputs, target, inside(cuts, len(target)))
    probabilities = outputs.double().softmax(1).numpy()
    covered = probabilities.max(axis=1) >= 0.5
    assert found["coverage_0.5"] == covered.mean()
    if covered.any():
        right = probabilities.argmax(axis=1)[covered] == target.numpy()[covered]
        assert found["covered_accuracy_0.5"] == pytest.approx(right.mean(), abs=1e-12)
    else:
        assert math.isnan(found["covered_accuracy_0.5"])
    loss = sklearn.log_loss(target, probabilities, labels=range(num_classes))
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-12)


def test_a_single_output_has_a_probability_of_class_1() -> None:
    names = ("coverage_0.75", "covered_accuracy_0.75", "perplexity")
    likely, target = torch.tensor([0.875, 0.125, 0.5, 0.75]), torch.tensor([1, 1, 0, 0])
    expected = pytest.approx(
        {
            "coverage_0.75": 0.75,
            "covered_accuracy_0.75": 1 / 3,
            "perplexity": math.exp(sklearn.log_loss(target, likely.double())),
        },
        rel=1e-12,
    )
    as_it_is = MetricSet(names, 2, threshold=0.5, probabilities=True)
    assert over_a_split(as_it_is, likely, target, [1]) == expected
    # In float64: of float32, the logit of 0.75 has a probability a little below.
    assert over_a_split(MetricSet(names, 2), likely.double().logit(), target, [3]) == expected


def test_perplexity_needs_no_names_for_the_tokens() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(5, 11, 7), torch.randint(11, (5, 7))
    target[0, 3:] = -100
    metrics = MetricSet(("perplexity",), ignore_index=-100)
    found = over_a_split(metrics, outputs, target, [2])
    loss = torch.nn.functional.cross_entropy(outputs.double(), target)
    assert found["perplexity"] == pytest.approx(loss.exp().item(), rel=1e-12)


@given(problem=problems(columns_more=1), cuts=CUTS)
@settings(deadline=None, max_examples=30)
def test_the_confusion_matrix_is_that_of_scikit_learn(
    problem: tuple[int, torch.Tensor, torch.Tensor], cuts: list[int]
) -> None:
    num_classes, outputs, target = problem
    metrics = MetricSet(("confusion", "perplexity"), num_classes)
    counts = torch.zeros(metrics.num_int64, dtype=torch.int64)
    for start, stop in pairwise([0, *sorted(inside(cuts, len(target))), len(target)]):
        own = torch.zeros_like(counts)
        metrics.update(outputs[start:stop], target[start:stop], torch.zeros(1), own)
        counts += own
    expected = sklearn.confusion_matrix(target, outputs.argmax(1), labels=range(num_classes))
    found = metrics.confusion(counts)
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    assert metrics.names == ("perplexity",), "a matrix is no score"
    assert MetricSet(("accuracy",), num_classes).confusion(counts) is None


@given(
    num_rows=st.integers(1, 50),
    columns=st.integers(1, 3),
    seed=st.integers(0, 999),
    cuts=CUTS,
    offset=st.sampled_from([0.0, 1e4]),
)
@settings(deadline=None, max_examples=30)
def test_errors_are_those_of_scikit_learn_on_any_split(
    num_rows: int, columns: int, seed: int, cuts: list[int], offset: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(num_rows, columns, generator=generator, dtype=torch.float64) + offset
    target = torch.randn(num_rows, columns, generator=generator, dtype=torch.float64) + offset
    center = torch.full((columns,), offset, dtype=torch.float64)
    metrics = MetricSet(OF_NUMBERS, center=center)
    found = over_a_split(metrics, outputs, target, inside(cuts, num_rows))
    huber = torch.nn.functional.huber_loss
    expected = {
        "mae": sklearn.mean_absolute_error(target, outputs),
        "mse": sklearn.mean_squared_error(target, outputs),
        "huber": huber(outputs, target).item(),
        "huber_0.3": huber(outputs, target, delta=0.3).item(),
        "r2": sklearn.r2_score(target, outputs) if num_rows > 1 else math.nan,
    }
    assert list(found) == list(OF_NUMBERS)
    assert found == pytest.approx(expected, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize(("off", "score"), [(0.0, 1.0), (0.25, 0.0)])
def test_r2_of_a_target_that_never_changes_is_scikit_learns(off: float, score: float) -> None:
    target = torch.full((9, 1), 0.1, dtype=torch.float64)
    found = over_a_split(MetricSet(("r2",)), target + off, target, [4])
    assert found["r2"] == sklearn.r2_score(target, target + off) == score


def test_r2_keeps_its_digits_by_the_training_parts_mean() -> None:
    rng = np.random.default_rng(0)
    values = 1e6 + rng.standard_normal((40, 2, 3))
    data = Dataset.from_arrays({"y": values})
    center = center_of(data, "y")
    assert center is not None
    assert center.shape == (6,)
    outputs = torch.from_numpy(values + 0.1 * rng.standard_normal(values.shape))
    found = over_a_split(MetricSet(("r2",), center=center), outputs, torch.from_numpy(values), [9])
    expected = sklearn.r2_score(values.reshape(40, 6), outputs.numpy().reshape(40, 6))
    assert found["r2"] == pytest.approx(expected, rel=1e-11)
    with pytest.raises(ConfigError, match=r"r2 knows 6 numbers a sample .* of shape \(40, 2\)"):
        over_a_split(MetricSet(("r2",), center=center), outputs[:, 0, :2], outputs[:, 0, :2], [])


def test_squares_are_summed_in_float64() -> None:
    outputs, target = torch.tensor([4096.0, 1.0, 1.0]), torch.zeros(3)
    found = over_a_split(MetricSet(("mse",)), outputs, target, [])
    assert found["mse"] * 3 == 2.0**24 + 2.0


def test_classes_and_errors_go_together() -> None:
    outputs, target = torch.tensor([0.9, -0.2, 0.3]), torch.tensor([1.0, 0.0, 0.0])
    found = over_a_split(MetricSet(("mae", "accuracy"), 2), outputs, target, [1])
    assert found == pytest.approx({"mae": (0.1 + 0.2 + 0.3) / 3, "accuracy": 2 / 3}, abs=1e-7)


def test_without_a_sample_there_is_no_score() -> None:
    metrics = MetricSet([*METRICS, *EXAMPLES[1:]], 3)
    found = metrics.scores(
        torch.zeros(metrics.num_float64, dtype=torch.float64),
        torch.zeros(metrics.num_int64, dtype=torch.int64),
    )
    assert all(math.isnan(score) for score in found.values())
    assert {*found, "confusion", "roc_auc", "pr_auc"} == {*METRICS, *EXAMPLES[1:]}
    assert all(math.isnan(score) for score in metrics.of_outputs([]).values())


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
    with pytest.raises(ConfigError, match=r"no metric 'f1_macro'; did you mean f1_micro"):
        MetricSet(("f1_macro",), 3)


@pytest.mark.parametrize("num_classes", [None, 0])
def test_a_metric_of_classes_without_classes_is_refused(num_classes: int | None) -> None:
    with pytest.raises(ConfigError, match=r"recall needs a target column .* mse, mae, huber, r2"):
        MetricSet(("mse", "recall"), num_classes)


def test_no_metrics_need_no_words() -> None:
    metrics = MetricSet(())
    assert (metrics.num_float64, metrics.num_int64) == (0, 0)
    assert metrics.scores(torch.zeros(0), torch.zeros(0)) == {}


def test_less_is_better_for_losses_and_errors_only() -> None:
    every = ("loss", *METRICS, *EXAMPLES)
    better_low = {name for name in every if is_error(name)}
    assert better_low == {"loss", "mse", "mae", "huber", "huber_0.5", "perplexity"}
    for prefix in ("val_", "val_shifted_", "val_by_night_"):
        assert all(is_error(f"{prefix}{name}") == is_error(name) for name in every)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top_0", "'top_0' ends in '0'; a whole number from 1 on is wanted, as in top_5"),
        ("top_2.5", "a whole number from 1 on"),
        ("coverage_1.5", "a probability above 0, up to 1 is wanted, as in coverage_0.9"),
        ("covered_accuracy_x", "as in covered_accuracy_0.9"),
        ("huber_-1", "a number above 0 is wanted, as in huber_0.5"),
        ("huber_nan", "a number above 0"),
        ("top5", "no metric 'top5'; did you mean top_5"),
    ],
)
def test_a_value_in_a_name_that_makes_no_sense_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        metric(name)


def test_what_can_only_be_1_is_refused() -> None:
    with pytest.raises(ConfigError, match="top_3 is always 1 with 3 classes"):
        MetricSet(("top_3",), 3)
    with pytest.raises(ConfigError, match="top_1 needs an output for each class"):
        over_a_split(MetricSet(("top_1",), 2), torch.randn(3), torch.tensor([0, 1, 1]), [])


def test_a_metric_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="metrics has accuracy twice"):
        MetricSet(("accuracy", "f1", "accuracy"), 3)


def test_training_measures_what_adds_up_in_few_words() -> None:
    metrics = MetricSet([*METRICS, *EXAMPLES[1:]], 3)
    left_out = {*METRICS, *EXAMPLES[1:]} - set(metrics.in_training().names)
    assert left_out == {"roc_auc", "pr_auc", "confusion"}


def test_counts_are_taken_without_a_gradient() -> None:
    outputs = torch.randn(4, 3, requires_grad=True)
    found = over_a_split(MetricSet(("accuracy",), 3), outputs, outputs.detach().argmax(1), [])
    assert found == {"accuracy": 1.0}
