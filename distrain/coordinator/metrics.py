"""The chosen metrics: what each micro-batch adds to them, and the scores that follow.

A metric is never averaged over batches or workers. Most are sums: what travels along the tree are
counts (int64) and sums (float64), and the score is taken from their total. Areas under curves, and
metrics of others, need all outputs at once: those are gathered, on validation sets alone.
"""

from collections.abc import Iterator, Sequence

import torch

from distrain.coordinator.class_metrics import (
    ClassCounts,
    ClassSums,
    Confidence,
    Confusion,
    Perplexity,
    TopRanks,
)
from distrain.coordinator.class_outputs import ClassOutputs, ClassTask
from distrain.coordinator.curve_metrics import areas
from distrain.coordinator.error_metrics import R2, Errors, NumberSums, check_shapes
from distrain.coordinator.torch_metric import TorchMetric
from distrain.errors import ConfigError
from distrain.metric_names import CONFUSION, OF_NUMBERS, Metric, metric

Chunk = tuple[torch.Tensor, torch.Tensor]
"""Outputs and targets of some rows."""


class MetricSet:
    """The chosen metrics, and the words that they need in a payload.

    Attributes:
        given: What was chosen, by name.
        names: The scores among them; a confusion matrix is none.
        num_float64: Sums that `update` writes.
        num_int64: Counts that `update` writes.
    """

    def __init__(
        self,
        chosen: Sequence[str | TorchMetric],
        num_classes: int | None = None,
        *,
        ignore_index: int | None = None,
        threshold: float = 0.0,
        probabilities: bool = False,
        center: torch.Tensor | None = None,
    ) -> None:
        """Lays out the words.

        Args:
            chosen: Names as in `distrain.metric_names`, and metrics of others.
            num_classes: Classes C of the target; metrics of classification need it.
            ignore_index: Class targets with this value are passed over.
            threshold: For outputs with one value a sample: class 1 is predicted above it.
            probabilities: Whether such a value is a probability, and not a logit.
            center: `(K,)`, float64: about the mean of each of the target's K numbers, for r2.

        Raises:
            ConfigError: a name is unknown or given twice, or a classification metric has no
                classes.
        """
        self._chosen = tuple(chosen)
        self._task = ClassTask(num_classes or 0, ignore_index, threshold, probabilities)
        self._center = torch.zeros(1, dtype=torch.float64) if center is None else center
        names = [one if isinstance(one, str) else one.name for one in chosen]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"metrics has {name} twice: once is enough")
        self.given = tuple(names)
        self.names = tuple(name for name in names if name != CONFUSION)
        named = [metric(one) for one in chosen if isinstance(one, str)]
        self._check_classes([one.name for one in named if one.needs_classes])
        self._others = [one for one in chosen if isinstance(one, TorchMetric)]
        self._curves = [one.name for one in named if one.kind == "curve"]
        self._summed = [one for one in named if one.kind != "curve"]
        self._confusion = Confusion(self._task.num_classes) if CONFUSION in names else None
        self._of_classes = list(self._class_sums(self._summed))
        self._of_numbers = list(self._number_sums(self._summed))
        self._sums: list[ClassSums | NumberSums] = [*self._of_classes, *self._of_numbers]
        self.num_float64 = sum(one.num_float64 for one in self._sums)
        self.num_int64 = sum(one.num_int64 for one in self._sums)

    def _check_classes(self, names: Sequence[str]) -> None:
        if names and not self._task.num_classes:
            raise ConfigError(
                f"{', '.join(names)} needs a target column that is a class label; for numbers "
                f"there are {', '.join(OF_NUMBERS)}"
            )

    def _class_sums(self, named: Sequence[Metric]) -> Iterator[ClassSums]:
        if counted := [one.name for one in named if one.kind == "classes"]:
            yield ClassCounts(counted, self._task.num_classes)
        if ranked := [one for one in named if one.kind == "rank"]:
            yield TopRanks(ranked, self._task.num_classes)
        if confident := [one for one in named if one.kind == "confidence"]:
            yield Confidence(confident)
        if any(one.kind == "perplexity" for one in named):
            yield Perplexity()
        if self._confusion is not None:
            yield self._confusion

    def _number_sums(self, named: Sequence[Metric]) -> Iterator[NumberSums]:
        if errors := [one for one in named if one.kind == "errors"]:
            yield Errors(errors)
        if any(one.kind == "r2" for one in named):
            yield R2(self._center)

    def in_training(self) -> "MetricSet":
        """Those that the steps of an epoch can measure as well: few words, that add up."""
        return MetricSet(
            [one for one in self._chosen if isinstance(one, str) and metric(one).in_training],
            self._task.num_classes,
            ignore_index=self._task.ignore_index,
            threshold=self._task.threshold,
            probabilities=self._task.probabilities,
            center=self._center,
        )

    @property
    def needs_outputs(self) -> bool:
        """Whether `of_outputs` has anything to measure."""
        return bool(self._curves or self._others)

    def directions(self) -> dict[str, bool | None]:
        """By name of the metrics of others: whether less is better, None where nobody says."""
        return {one.name: one.direction() for one in self._others}

    def update(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        float64: torch.Tensor,
        int64: torch.Tensor,
    ) -> None:
        """Writes one micro-batch's words.

        Args:
            outputs: `(B, C, ...)` scores by class, `(B,)` or `(B, 1)` for two classes, or numbers.
            target: `(B, ...)` class indices, probabilities `(B, C, ...)` of which the largest
                counts, as where labels were mixed or smoothed, or numbers of the outputs' shape.
            float64: `(num_float64,)`, written over.
            int64: `(num_int64,)`, written over.

        Raises:
            DataError: a target is no class.
            ConfigError: outputs and target don't go with each other.
        """
        outputs = outputs.detach()
        words = _Words(float64, int64)
        if self._of_classes:
            names = [one.name for one in self._summed if not one.of_numbers]
            found = ClassOutputs(outputs, target, self._task, names)
            for of_classes in self._of_classes:
                of_classes.update(found, *words.of(of_classes))
        if self._of_numbers:
            check_shapes([one.name for one in self._summed if one.of_numbers], outputs, target)
            for of_numbers in self._of_numbers:
                of_numbers.update(outputs, target, *words.of(of_numbers))

    def scores(self, float64: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """What the words' totals tell; NaN where there was no sample."""
        words = _Words(float64, int64)
        found: dict[str, float] = {}
        for one in self._sums:
            found |= one.scores(*words.of(one))
        return {name: found[name] for name in self.names if name in found}

    def confusion(self, int64: torch.Tensor) -> torch.Tensor | None:
        """`(C, C)`, int64: the matrix, row by target, if it was chosen."""
        if self._confusion is None:
            return None
        # It stands last among those of classes.
        end = sum(one.num_int64 for one in self._of_classes)
        return self._confusion.matrix(int64[end - self._confusion.num_int64 : end])

    def of_outputs(self, chunks: Sequence[Chunk]) -> dict[str, float]:
        """What only all outputs tell; the same for the same chunks.

        Args:
            chunks: All outputs and targets, on the host, in the data set's stored order.
        """
        found = areas(self._curves, chunks, self._task) if self._curves else {}
        return found | {one.name: one.score(chunks) for one in self._others}


class _Words:
    """Hands each of several metrics its words of a payload, one after another."""

    def __init__(self, float64: torch.Tensor, int64: torch.Tensor) -> None:
        self._float64, self._int64 = float64, int64

    def of(self, sums: ClassSums | NumberSums) -> tuple[torch.Tensor, torch.Tensor]:
        mine = self._float64[: sums.num_float64], self._int64[: sums.num_int64]
        self._float64 = self._float64[sums.num_float64 :]
        self._int64 = self._int64[sums.num_int64 :]
        return mine
