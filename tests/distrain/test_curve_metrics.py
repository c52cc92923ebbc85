"""Areas under curves, against scikit-learn; ties, absent classes and what is not defined."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from distrain.coordinator.class_outputs import ClassTask
from distrain.coordinator.curve_metrics import areas, average_precision, roc_auc

BOTH = ("roc_auc", "pr_auc")


@st.composite
def ranked(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, often with ties, and which of them are positive."""
    size = draw(st.integers(2, 60))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    scores = torch.randn(size, generator=generator, dtype=torch.float64)
    digits = draw(st.sampled_from([None, 0, 1]))
    positive = torch.rand(size, generator=generator) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    return scores if digits is None else scores.round(decimals=digits), positive


@given(problem=ranked())
@settings(deadline=None, max_examples=150)
def test_areas_are_those_of_scikit_learn_with_and_without_ties(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    scores, positive = problem
    if positive.any():
        expected = sklearn.average_precision_score(positive, scores)
        assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)
    if positive.any() and not positive.all():
        expected = sklearn.roc_auc_score(positive, scores)
        assert roc_auc(scores, positive) == pytest.approx(expected, abs=1e-12)


@given(problem=ranked())
@settings(deadline=None, max_examples=50)
def test_the_order_of_the_samples_does_not_change_a_bit(
    problem: tuple[torch.Tensor, torch.Tensor],
) -> None:
    scores, positive = problem
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(len(scores)))
    for area in (roc_auc, average_precision):
        whole, shuffled = area(scores, positive), area(scores[order], positive[order])
        assert whole == shuffled or (math.isnan(whole) and math.isnan(shuffled))


def test_areas_by_hand() -> None:
    # Of 2 positives and 2 negatives, 4 pairs: two in order, one a tie, one not.
    scores, positive = torch.tensor([0.9, 0.5, 0.5, 0.7]), torch.tensor([1, 1, 0, 0]).bool()
    assert roc_auc(scores, positive) == 2.5 / 4
    # Precision 1 for the first half of the recall, then 2 of 4.
    assert average_precision(scores, positive) == (1 + 2 / 4) / 2


@pytest.mark.parametrize(
    ("positive", "area", "precision"),
    [([True, True], math.nan, 1.0), ([False, False], math.nan, math.nan), ([], math.nan, math.nan)],
)
def test_what_is_not_defined_is_nan(positive: list[bool], area: float, precision: float) -> None:
    scores, found = torch.arange(len(positive)).double(), torch.tensor(positive, dtype=torch.bool)
    assert roc_auc(scores, found) == pytest.approx(area, nan_ok=True)
    assert average_precision(scores, found) == pytest.approx(precision, nan_ok=True)


def test_a_score_that_is_nan_leaves_no_area() -> None:
    scores, positive = torch.tensor([0.1, math.nan, 0.3]), torch.tensor([True, False, False])
    assert math.isnan(roc_auc(scores, positive))
    assert math.isnan(average_precision(scores, positive))


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Classes C, outputs `(N, C)` and targets `(N,)` in which some classes may be absent."""
    num_classes, num_rows = draw(st.integers(3, 6)), draw(st.integers(1, 50))
    occurring = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    outputs = torch.randn(num_rows, num_classes, generator=generator)
    chosen = torch.randint(len(occurring), (num_rows,), generator=generator)
    return num_classes, outputs, torch.tensor(occurring)[chosen]


def in_pieces(
    outputs: torch.Tensor, target: torch.Tensor, size: int = 7
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    starts = range(0, len(target), size)
    return [(outputs[at : at + size], target[at : at + size]) for at in starts]


@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_several_classes_are_averaged_one_against_the_rest_over_those_that_occur(
    problem: tuple[int, torch.Tensor, torch.Tensor],
) -> None:
    num_classes, outputs, target = problem
    found = areas(BOTH, in_pieces(outputs, target), ClassTask(num_classes))
    probabilities = outputs.double().softmax(1).numpy()
    occurring = sorted(set(target.tolist()))
    precisions = [
        sklearn.average_precision_score(target == one, probabilities[:, one]) for one in occurring
    ]
    assert found["pr_auc"] == pytest.approx(np.mean(precisions), abs=1e-12)
    if len(occurring) == 1:
        assert math.isnan(found["roc_auc"])
        return
    rocs = [sklearn.roc_auc_score(target == one, probabilities[:, one]) for one in occurring]
    assert found["roc_auc"] == pytest.approx(np.mean(rocs), abs=1e-12)
    if len(occurring) == num_classes:
        whole = sklearn.roc_auc_score(target, probabilities, multi_class="ovr", average="macro")
        assert found["roc_auc"] == pytest.approx(whole, abs=1e-12)


def test_two_classes_and_a_single_output_rank_class_1() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(40, 2), torch.randint(2, (40,))
    expected = {
        "roc_auc": sklearn.roc_auc_score(target, outputs.double().softmax(1)[:, 1]),
        "pr_auc": sklearn.average_precision_score(target, outputs.double().softmax(1)[:, 1]),
    }
    task = ClassTask(2)
    assert areas(BOTH, in_pieces(outputs, target), task) == pytest.approx(expected, abs=1e-12)
    single = outputs[:, 1:].double() - outputs[:, :1].double()
    assert areas(BOTH, in_pieces(single, target), task) == pytest.approx(expected, abs=1e-12)
    # A third output is no class, but takes its share of the probability.
    more = torch.cat([outputs, torch.full((40, 1), -1e9)], dim=1)
    assert areas(BOTH, in_pieces(more, target), task) == pytest.approx(expected, abs=1e-12)


def test_places_count_one_by_one_and_ignored_ones_not_at_all() -> None:
    torch.manual_seed(0)
    outputs, target = torch.randn(9, 3, 4, 5), torch.randint(3, (9, 4, 5))
    target[2:4] = 255
    found = areas(BOTH, in_pieces(outputs, target, 2), ClassTask(3, ignore_index=255))
    rows, kept = outputs.movedim(1, -1).reshape(-1, 3), target.reshape(-1) != 255
    whole = sklearn.roc_auc_score(
        target.reshape(-1)[kept], rows[kept].double().softmax(1), multi_class="ovr"
    )
    assert found["roc_auc"] == pytest.approx(whole, abs=1e-12)


def test_probabilities_that_round_to_1_are_still_ranked() -> None:
    outputs, target = torch.tensor([[0.0, 50.0], [0.0, 60.0]]), torch.tensor([0, 1])
    assert len(set(outputs.double().softmax(1)[:, 1].tolist())) == 1
    assert areas(BOTH, [(outputs, target)], ClassTask(2)) == {"roc_auc": 1.0, "pr_auc": 1.0}
