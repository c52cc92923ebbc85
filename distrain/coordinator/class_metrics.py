"""Metrics of classes as sums over samples: counts by class, ranks, confidence, perplexity."""

from collections.abc import Sequence
from typing import Protocol

import torch

from distrain.coordinator.class_outputs import ClassOutputs
from distrain.errors import ConfigError
from distrain.metric_names import Metric


class ClassSums(Protocol):
    """Metrics whose words of several micro-batches add up."""

    num_float64: int
    num_int64: int

    def update(self, found: ClassOutputs, float64: torch.Tensor, int64: torch.Tensor) -> None:
        """Writes one micro-batch's words over what stands there."""
        ...

    def scores(self, float64: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """The metrics from the words' totals; NaN where no sample says anything."""
        ...


class ClassCounts:
    """Accuracy, balanced accuracy, precision, recall and F1 from counts by class.

    Words: hits `(C,)`, predicted `(C + 1,)`, which has a place more for outputs beyond the last
    class, and actual `(C,)`.
    """

    num_float64 = 0

    def __init__(self, names: Sequence[str], num_classes: int) -> None:
        """For classes `[0, num_classes)`."""
        self._names, self._num_classes = names, num_classes
        self.num_int64 = 3 * num_classes + 1

    def update(self, found: ClassOutputs, _: torch.Tensor, int64: torch.Tensor) -> None:
        """Counts."""
        classes = self._num_classes
        actual, predicted = found.actual, found.predicted.clamp(max=classes)
        int64[:classes] = torch.bincount(actual[predicted == actual], minlength=classes)
        int64[classes : 2 * classes + 1] = torch.bincount(predicted, minlength=classes + 1)
        int64[2 * classes + 1 :] = torch.bincount(actual, minlength=classes)

    def scores(self, _: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """With scikit-learn's conventions."""
        counts, classes = int64.double(), self._num_classes
        nothing = counts.new_zeros(1)
        # What lies beyond the last class counts as one that never occurs as target.
        hits = torch.cat([counts[:classes], nothing])
        predicted = counts[classes : 2 * classes + 1]
        actual = torch.cat([counts[2 * classes + 1 :], nothing])
        return {name: _by_classes(name, hits, predicted, actual) for name in self._names}


def _by_classes(
    name: str, hits: torch.Tensor, predicted: torch.Tensor, actual: torch.Tensor
) -> float:
    """Macro averages run over the classes that occur as target or prediction; 0/0 counts as 0."""
    if name == "accuracy":
        return float(hits.sum() / actual.sum())
    if name == "balanced_accuracy":
        occurs = actual > 0
        return float((hits[occurs] / actual[occurs]).mean())
    kind, _, average = name.partition("_")
    if average == "micro":
        hits, predicted, actual = hits.sum(0, True), predicted.sum(0, True), actual.sum(0, True)
    top, bottom = {
        "precision": (hits, predicted),
        "recall": (hits, actual),
        "f1": (2 * hits, predicted + actual),
    }[kind]
    by_class = torch.where(bottom > 0, top / bottom.clamp(min=1), torch.zeros_like(top))
    if average == "weighted":
        return float((by_class * actual).sum() / actual.sum())
    return float(by_class[(predicted + actual) > 0].mean())


class Confusion:
    """How often each class was taken for each: `(C, C + 1)`, the last column beyond the classes."""

    num_float64 = 0

    def __init__(self, num_classes: int) -> None:
        """For classes `[0, num_classes)`."""
        self._num_classes = num_classes
        self.num_int64 = num_classes * (num_classes + 1)

    def update(self, found: ClassOutputs, _: torch.Tensor, int64: torch.Tensor) -> None:
        """Counts."""
        columns = self._num_classes + 1
        places = found.actual * columns + found.predicted.clamp(max=self._num_classes)
        int64[:] = torch.bincount(places, minlength=self.num_int64)

    def scores(self, _: torch.Tensor, __: torch.Tensor) -> dict[str, float]:
        """None: it is no number."""
        return {}

    def matrix(self, int64: torch.Tensor) -> torch.Tensor:
        """`(C, C)`, int64: row by target, column by prediction."""
        return int64.view(self._num_classes, self._num_classes + 1)[:, : self._num_classes]


class TopRanks:
    """Top-k accuracy: how often the target is among the k highest scores.

    Of equal scores the first counts as higher, as in `argmax`: top_1 is the accuracy. A score that
    is NaN is no hit.
    """

    num_float64 = 0

    def __init__(self, metrics: Sequence[Metric], num_classes: int) -> None:
        """For classes `[0, num_classes)`.

        Raises:
            ConfigError: every score would be 1.
        """
        for one in metrics:
            if one.value >= num_classes:
                raise ConfigError(
                    f"{one.name} is always 1 with {num_classes} classes: give a k below that"
                )
        self._metrics = metrics
        self.num_int64 = 1 + len(metrics)

    def update(self, found: ClassOutputs, _: torch.Tensor, int64: torch.Tensor) -> None:
        """Counts places, then hits."""
        if not found.by_class:
            raise ConfigError(
                f"{self._metrics[0].name} needs an output for each class, and the model gives one "
                "output a sample: take accuracy"
            )
        scores, actual = found.scores, found.actual.unsqueeze(1)
        own = scores.gather(1, actual)
        before = torch.arange(scores.shape[1], device=scores.device) < actual
        rank = (~(scores <= own)).sum(1) + ((scores == own) & before).sum(1)
        int64[0] = len(actual)
        for place, one in enumerate(self._metrics, start=1):
            int64[place] = (rank < one.value).sum()

    def scores(self, _: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """Hits by places."""
        hits = int64[1:].double() / int64[0]
        return {one.name: float(hit) for one, hit in zip(self._metrics, hits, strict=True)}


class Confidence:
    """Coverage at a threshold t, and accuracy on what is covered.

    Covered are the samples whose top probability is t or more (a classifier with a reject option:
    Geifman and El-Yaniv, https://arxiv.org/abs/1705.08500, section 2).
    """

    num_float64 = 0

    def __init__(self, metrics: Sequence[Metric]) -> None:
        """Counts by threshold."""
        self._metrics = metrics
        self._thresholds = list(dict.fromkeys(one.value for one in metrics))
        self.num_int64 = 1 + 2 * len(self._thresholds)

    def update(self, found: ClassOutputs, _: torch.Tensor, int64: torch.Tensor) -> None:
        """Counts places; then, by threshold, those covered and hits among them."""
        top = found.top_probability
        hits = found.predicted == found.actual
        int64[0] = len(top)
        for place, threshold in enumerate(self._thresholds):
            covered = top >= threshold
            int64[1 + 2 * place] = covered.sum()
            int64[2 + 2 * place] = (covered & hits).sum()

    def scores(self, _: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """Of all places, and of those covered."""
        places, *counts = int64.double()
        found: dict[str, float] = {}
        for one in self._metrics:
            at = 2 * self._thresholds.index(one.value)
            covered, hits = counts[at], counts[at + 1]
            found[one.name] = float(covered / places if one.stem == "coverage" else hits / covered)
        return found


class Perplexity:
    """The exponential of the mean negative log-likelihood of the targets."""

    num_float64 = num_int64 = 1

    def update(self, found: ClassOutputs, float64: torch.Tensor, int64: torch.Tensor) -> None:
        """Sums in float64."""
        likely = found.log_probabilities.gather(1, found.actual.unsqueeze(1))
        float64[0], int64[0] = -likely.sum(), len(likely)

    def scores(self, float64: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """By place, such as a token."""
        return {"perplexity": float((float64[0] / int64[0]).exp())}
