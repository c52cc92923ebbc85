"""Areas under curves, exact: from all outputs, with equal scores taken together.

Nothing is binned and no threshold is left out, so the numbers are those of scikit-learn.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch

from distrain.coordinator.class_outputs import ClassOutputs, ClassTask


def roc_auc(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """The area under the ROC curve: the share of pairs of a positive and a negative in order.

    Equal scores are half in order (Hanley and McNeil, 1982, https://doi.org/10.1148/radiology.143.1.7063747).
    It is one division of whole numbers, so it is rounded once.

    Args:
        scores: `(n,)`, higher for what is more likely positive.
        positive: `(n,)`, bool.

    Returns:
        A number in [0, 1]; NaN without a positive or a negative, or where a score is NaN.
    """
    true, false = _counts(scores, positive)
    if not len(true) or not true[-1] or not false[-1]:
        return math.nan
    before = torch.cat([true.new_zeros(1), true[:-1]])
    rise = torch.diff(false, prepend=false.new_zeros(1))
    # Twice the area of each trapezoid between two thresholds.
    doubled = int((rise * (before + true)).sum())
    return doubled / (2 * int(true[-1]) * int(false[-1]))


def average_precision(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """The area under the precision-recall curve as a sum of steps, `sum (R_i - R_i-1) P_i`.

    Returns:
        A number in [0, 1]; NaN without a positive, or where a score is NaN.
    """
    true, false = _counts(scores, positive)
    if not len(true) or not true[-1]:
        return math.nan
    rise = torch.diff(true, prepend=true.new_zeros(1))
    up = rise > 0
    steps = rise[up].double() * (true[up].double() / (true[up] + false[up]))
    return math.fsum(steps.tolist()) / int(true[-1])


def _counts(scores: torch.Tensor, positive: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """True and false positives at each threshold, the highest first: `(k,)`, int64.

    Nothing at all where a score is NaN, which no threshold is below.
    """
    if not len(scores) or bool(scores.isnan().any()):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    scores, order = scores.sort(descending=True)
    last_of_equals = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool)])
    true = positive[order].cumsum(0)[last_of_equals]
    return true, torch.arange(1, len(scores) + 1)[last_of_equals] - true


_AREAS: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "roc_auc": roc_auc,
    "pr_auc": average_precision,
}


def areas(
    names: Sequence[str],
    chunks: Iterable[tuple[torch.Tensor, torch.Tensor]],
    task: ClassTask,
) -> dict[str, float]:
    """ROC AUC and average precision of all outputs.

    Of two classes, class 1 is the positive one. Of more, each class is held against the rest by
    its probability, and the classes for which that is defined are averaged.

    Args:
        names: Of `roc_auc`, `pr_auc`.
        chunks: Outputs and targets as `ClassOutputs` takes them, some rows at a time.
        task: What they mean.

    Returns:
        By name; NaN where no class has an area.
    """
    scores: list[torch.Tensor] = []
    actual: list[torch.Tensor] = []
    for outputs, target in chunks:
        found = ClassOutputs(outputs, target, task, names)
        scores.append(_rankings(found))
        actual.append(found.actual)
    if not scores:
        return dict.fromkeys(names, math.nan)
    by_class, classes = torch.cat(scores), torch.cat(actual)
    positives = [1] if by_class.shape[1] == 1 else range(by_class.shape[1])
    columns = [(by_class[:, place], classes == one) for place, one in enumerate(positives)]
    return {name: _mean([_AREAS[name](*column) for column in columns]) for name in names}


def _rankings(found: ClassOutputs) -> torch.Tensor:
    """What ranks the samples for each class, or for class 1 of two: `(n, C)` or `(n, 1)`, float64.

    Logarithms of probabilities keep apart what probabilities round to 1.
    """
    if not found.by_class:
        return found.scores.double().unsqueeze(1)
    if found.num_classes > 2:
        return found.log_probabilities[:, : found.num_classes]
    if found.scores.shape[1] > 2:
        return found.log_probabilities[:, 1:2]
    scores = found.scores.double()
    return scores[:, 1:] - scores[:, :1]


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
