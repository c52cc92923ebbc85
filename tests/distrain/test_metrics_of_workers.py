"""All metrics over uneven data on 1 to 5 workers (threads here), against scikit-learn's over the
whole, and to the bit against one worker's.
"""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn
from torch import nn

from data_pipeline import Dataset
from data_pipeline.recipe import Recipe
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.torch_metric import TorchMetric
from distrain.errors import ProgramError, UndefinedScoreWarning
from distrain.evaluate import ROWS, Evaluation, Scores
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.world import World
from tests.thread_workers import outcomes

CLASSES = 5
RECIPE = Recipe(columns=("x", "y"))
IGNORED = -100


def cohen_kappa() -> torchmetrics.Metric:
    return torchmetrics.CohenKappa(task="multiclass", num_classes=CLASSES)


CHOSEN = (
    *("accuracy", "balanced_accuracy", "top_2", "precision", "recall_weighted", "f1_micro"),
    *("coverage_0.5", "covered_accuracy_0.5", "perplexity", "roc_auc", "pr_auc", "confusion"),
    TorchMetric("kappa", cohen_kappa),
)


def as_they_are(model: nn.Module, columns: Columns) -> MicroBatchResult:
    """The inputs are the outputs: nothing is computed but the metrics."""
    return torch.zeros(()), float(len(columns["y"])), model(columns["x"])


def on_workers(size: int, data: Dataset, metrics: MetricSet) -> list[Any]:
    def work(world: World) -> Scores:
        evaluation = Evaluation(nn.Identity(), as_they_are, world, 0)
        return evaluation.scores(data, RECIPE, metrics, target="y")

    return outcomes(size, work)


def bits(scores: Scores) -> tuple[Any, ...]:
    matrix = None if scores.confusion is None else scores.confusion.tolist()
    return {name: score.hex() for name, score in scores.items()}, matrix


def of_scikit_learn(target: np.ndarray[Any, Any], outputs: torch.Tensor) -> dict[str, float]:
    probabilities = outputs.double().softmax(1).numpy()
    predicted, covered = probabilities.argmax(1), probabilities.max(1) >= 0.5
    rest: dict[str, Any] = {"average": "macro", "zero_division": 0}
    one_against_rest = [
        (target == one, probabilities[:, one]) for one in range(CLASSES) if (target == one).any()
    ]
    labels = range(CLASSES)
    return {
        "loss": 0.0,
        "accuracy": sklearn.accuracy_score(target, predicted),
        "balanced_accuracy": np.mean(
            [(predicted[target == one] == one).mean() for one in np.unique(target)]
        ),
        "top_2": sklearn.top_k_accuracy_score(target, outputs, k=2, labels=labels),
        "precision": sklearn.precision_score(target, predicted, **rest),
        "recall_weighted": sklearn.recall_score(
            target, predicted, **{**rest, "average": "weighted"}
        ),
        "f1_micro": sklearn.f1_score(target, predicted, **{**rest, "average": "micro"}),
        "coverage_0.5": covered.mean(),
        "covered_accuracy_0.5": (predicted == target)[covered].mean() if covered.any() else np.nan,
        "perplexity": math.exp(sklearn.log_loss(target, probabilities, labels=labels)),
        "roc_auc": np.mean([sklearn.roc_auc_score(*one) for one in one_against_rest]),
        "pr_auc": np.mean([sklearn.average_precision_score(*one) for one in one_against_rest]),
        "kappa": sklearn.cohen_kappa_score(target, predicted, labels=labels),
    }


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[Dataset, torch.Tensor, np.ndarray[Any, Any]]:
    """Rows that fill chunks of 128 or don't, of at least two classes."""
    num_rows = draw(st.sampled_from([2, ROWS, ROWS + 1]) | st.integers(3, 7 * ROWS))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    occurring = draw(st.permutations(range(CLASSES)))[: draw(st.integers(2, CLASSES))]
    outputs = rng.standard_normal((num_rows, CLASSES)).astype(np.float32)
    target = rng.choice(occurring, num_rows)
    target[:2] = occurring[:2]
    data = Dataset.from_arrays({"x": outputs, "y": target}, classes={"y": list("abcde")})
    return data, torch.from_numpy(outputs), target


@given(problem=data_sets(), size=st.integers(2, 5))
@settings(deadline=None, max_examples=25)
def test_metrics_are_scikit_learns_and_the_same_bits_on_1_to_5_workers(
    problem: tuple[Dataset, torch.Tensor, np.ndarray[Any, Any]], size: int
) -> None:
    data, outputs, target = problem
    metrics = MetricSet(CHOSEN, CLASSES)
    (alone,) = on_workers(1, data, metrics)
    found, expected = dict(alone), of_scikit_learn(target, outputs)
    # torchmetrics computes it in float32.
    assert found.pop("kappa") == pytest.approx(expected.pop("kappa"), abs=1e-6, nan_ok=True)
    assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
    matrix = sklearn.confusion_matrix(target, outputs.argmax(1), labels=range(CLASSES))
    np.testing.assert_array_equal(alone.confusion, matrix)
    assert [bits(one) for one in on_workers(size, data, metrics)] == [bits(alone)] * size


NUMBERS = ("mse", "mae", "huber_0.7", "r2")


@given(num_rows=st.integers(2, 7 * ROWS), size=st.integers(2, 5), seed=st.integers(0, 9999))
@settings(deadline=None, max_examples=15)
def test_errors_are_scikit_learns_and_the_same_bits_on_1_to_5_workers(
    num_rows: int, size: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    outputs, target = (rng.standard_normal((num_rows, 2)).astype(np.float32) for _ in range(2))
    data = Dataset.from_arrays({"x": outputs, "y": target})
    metrics = MetricSet(NUMBERS, center=torch.tensor([0.25, -1.0], dtype=torch.float64))
    (alone,) = on_workers(1, data, metrics)
    exact, wanted = target.astype(np.float64), outputs.astype(np.float64)
    huber = nn.functional.huber_loss(torch.from_numpy(wanted), torch.from_numpy(exact), delta=0.7)
    expected = {
        "loss": 0.0,
        "mse": sklearn.mean_squared_error(exact, wanted),
        "mae": sklearn.mean_absolute_error(exact, wanted),
        "huber_0.7": huber.item(),
        "r2": sklearn.r2_score(exact, wanted),
    }
    assert dict(alone) == pytest.approx(expected, rel=1e-10)
    assert [bits(found) for found in on_workers(size, data, metrics)] == [bits(alone)] * size


def one_class(num_rows: int = 300) -> Dataset:
    outputs = np.random.default_rng(0).standard_normal((num_rows, CLASSES)).astype(np.float32)
    target = np.full(num_rows, 3)
    return Dataset.from_arrays({"x": outputs, "y": target}, classes={"y": list("abcde")})


@pytest.mark.parametrize("size", [1, 3])
def test_an_area_that_is_not_defined_is_nan_and_said_once(size: int) -> None:
    metrics = MetricSet(("roc_auc", "accuracy"), CLASSES)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = on_workers(size, one_class(), metrics)
    assert all(math.isnan(scores["roc_auc"]) for scores in found)
    assert all(0 < scores["accuracy"] < 1 for scores in found)
    assert [one.category for one in said] == [UndefinedScoreWarning], "by rank 0 alone"
    assert str(said[0].message).startswith("roc_auc: not defined on this data set (NaN)")


def test_ignored_targets_are_passed_over_by_areas_too() -> None:
    rng = np.random.default_rng(0)
    outputs, target = rng.standard_normal((300, 2)), rng.integers(0, 2, 300)
    kept = np.arange(300) % 3 > 0
    data = Dataset.from_arrays({"x": outputs, "y": np.where(kept, target, IGNORED)})
    metrics = MetricSet(("roc_auc", "accuracy"), 2, ignore_index=IGNORED)
    for found in on_workers(3, data, metrics):
        difference = (outputs[:, 1] - outputs[:, 0])[kept]
        assert found["roc_auc"] == pytest.approx(sklearn.roc_auc_score(target[kept], difference))
        assert found["accuracy"] == ((difference > 0) == target[kept]).mean()


def test_a_metric_of_others_gets_fixed_pieces_in_stored_order() -> None:
    given: list[list[int]] = []

    class Watching:
        def __init__(self) -> None:
            self.given: list[int] = []
            given.append(self.given)

        def update(self, outputs: torch.Tensor, target: torch.Tensor) -> None:
            assert outputs.shape == (*target.shape, CLASSES)
            self.given.extend([len(target), *target.tolist()])

        def compute(self) -> float:
            return torch.rand(()).item()

    rng = np.random.default_rng(0)
    outputs, target = rng.standard_normal((300, CLASSES)), rng.integers(0, CLASSES, 300)
    data = Dataset.from_arrays({"x": outputs, "y": target}, classes={"y": list("abcde")})
    metrics = MetricSet((TorchMetric("drawn", Watching),), CLASSES)
    pieces = (target[:ROWS], target[ROWS : 2 * ROWS], target[2 * ROWS :])
    whole = [value for piece in pieces for value in (len(piece), *piece.tolist())]
    (alone,) = on_workers(1, data, metrics)
    # Threads share one generator, so what two of them draw at once tells nothing: rank 0 decides.
    two = on_workers(2, data, metrics)
    assert two[0]["drawn"] == two[1]["drawn"]
    assert on_workers(1, data, metrics)[0] == alone, "what it draws comes again"
    assert given == [whole] * 4


@pytest.mark.parametrize(
    ("value", "what"), [(torch.zeros(5), r"shape \(5,\)"), ({"a": 1.0}, "dict"), (None, "NoneType")]
)
def test_a_metric_that_is_no_number_is_refused(value: object, what: str) -> None:
    class Wrong:
        def update(self, outputs: torch.Tensor, target: torch.Tensor) -> None:
            pass

        def compute(self) -> object:
            return value

    metrics = MetricSet((TorchMetric("wrong", Wrong),), CLASSES)
    found = on_workers(2, one_class(10), metrics)
    assert all(isinstance(error, ProgramError) for error in found)
    with pytest.raises(ProgramError, match=f"the metric wrong computed {what}; a score is one"):
        raise found[0]


def test_without_outputs_there_is_nothing_to_rank() -> None:
    def nothing(model: nn.Module, columns: Columns) -> MicroBatchResult:
        return model(columns["x"]).sum(), 1.0, None

    def work(world: World) -> Scores:
        evaluation = Evaluation(nn.Identity(), nothing, world, 0)
        metrics = MetricSet(("confusion", "roc_auc"), CLASSES)
        return evaluation.scores(one_class(), RECIPE, metrics, target="y")

    (found,) = outcomes(1, work)
    assert "confusion, roc_auc can't be measured: the micro_batch_step returned" in str(found)
