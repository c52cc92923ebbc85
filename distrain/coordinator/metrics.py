"""Metrics as sums over micro-batches, so that they are exact whatever the split.

A metric is never averaged over batches or workers: what travels along the tree are counts (int64)
and sums (float64), and the score is taken from their total.
"""

from collections.abc import Sequence

import torch

from data_pipeline.errors import DataError
from distrain.checks import near_names
from distrain.config import METRICS
from distrain.errors import ConfigError

_ERROR_METRICS = ("mse", "mae")


def is_error(name: str) -> bool:
    """Whether less of it is better: losses and errors, with or without `val_`."""
    return name.removeprefix("val_") in ("loss", *_ERROR_METRICS)


class MetricSet:
    """The chosen metrics, and the words that they need in a payload.

    Attributes:
        names: The metrics, in the order given.
        num_float64: Sums that `update` writes.
        num_int64: Counts that `update` writes.
    """

    def __init__(
        self,
        names: Sequence[str],
        num_classes: int | None = None,
        *,
        ignore_index: int | None = None,
        threshold: float = 0.0,
    ) -> None:
        """Lays out the words.

        Args:
            names: From `distrain.config.METRICS`.
            num_classes: Classes C of the target; metrics of classification need it.
            ignore_index: Targets with this value are passed over.
            threshold: For outputs with one value a sample: class 1 is predicted above it.

        Raises:
            ConfigError: a name is unknown, or a classification metric has no classes.
        """
        for name in names:
            if name not in METRICS:
                raise ConfigError(f"there is no metric {name!r}; {near_names(name, METRICS)}")
        self.names = tuple(names)
        of_classes = [name for name in names if name not in _ERROR_METRICS]
        if of_classes and not num_classes:
            raise ConfigError(
                f"{', '.join(of_classes)} needs a target column that is a class label; for numbers "
                f"there are {', '.join(_ERROR_METRICS)}"
            )
        self._num_classes = num_classes if of_classes and num_classes else 0
        self._has_errors = any(name in _ERROR_METRICS for name in names)
        self._ignore_index, self._threshold = ignore_index, threshold
        # Per class: hits, predicted, actual; "predicted" has a place more, for outputs beyond C.
        self._num_counts = 3 * self._num_classes + 1 if self._num_classes else 0
        self.num_int64 = self._num_counts + (1 if self._has_errors else 0)
        self.num_float64 = 2 if self._has_errors else 0

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
            ConfigError: outputs and target differ in shape.
        """
        outputs = outputs.detach()
        if self._num_classes:
            mixed = target.is_floating_point() and target.ndim > 1
            mixed = mixed and target.shape[1] == self._num_classes > 1
            classes = target.argmax(dim=1) if mixed else target
            self._count(outputs, classes, int64[: self._num_counts])
        if self._has_errors:
            if outputs.shape != target.shape:
                raise ConfigError(
                    f"mse and mae compare outputs of shape {tuple(outputs.shape)} with a target "
                    f"of shape {tuple(target.shape)}: the shapes must be the same"
                )
            difference = outputs.double() - target.double()
            float64[0] = difference.square().sum()
            float64[1] = difference.abs().sum()
            int64[self._num_counts] = difference.numel()

    def _count(self, outputs: torch.Tensor, target: torch.Tensor, counts: torch.Tensor) -> None:
        classes = self._num_classes
        predicted = self._predicted(outputs, target).reshape(-1)
        actual = target.reshape(-1)
        if self._ignore_index is not None:
            kept = actual != self._ignore_index
            predicted, actual = predicted[kept], actual[kept]
        if actual.is_floating_point() and not torch.equal(actual, actual.floor()):
            raise ConfigError(
                f"{', '.join(self.names)} want whole class numbers as targets, and these are not"
            )
        actual = actual.long()
        if actual.numel() and not 0 <= int(actual.min()) <= int(actual.max()) < classes:
            raise DataError(
                f"the target has labels from {int(actual.min())} to {int(actual.max())}; with "
                f"{classes} classes they must lie in [0, {classes})"
            )
        predicted = predicted.clamp(max=classes)
        hits = actual[predicted == actual]
        counts[:classes] = torch.bincount(hits, minlength=classes)
        counts[classes : 2 * classes + 1] = torch.bincount(predicted, minlength=classes + 1)
        counts[2 * classes + 1 :] = torch.bincount(actual, minlength=classes)

    def _predicted(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if outputs.ndim == target.ndim + 1 and outputs.shape[1] > 1:
            return outputs.argmax(dim=1)
        if outputs.numel() == target.numel():
            if self._num_classes != 2:
                raise ConfigError(
                    f"the model gives one output a sample, and there are {self._num_classes} "
                    f"classes: {', '.join(self.names)} need an output for each"
                )
            return (outputs > self._threshold).long()
        raise ConfigError(
            f"outputs of shape {tuple(outputs.shape)} don't go with a target of shape "
            f"{tuple(target.shape)}: scores (B, C, ...) for classes (B, ...) are wanted"
        )

    def scores(self, float64: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """The metrics from the words' totals; NaN where there was no sample."""
        classes = self._num_classes
        counts = int64[: self._num_counts].double()
        hits, predicted = counts[:classes], counts[classes : 2 * classes + 1]
        actual = counts[2 * classes + 1 :]
        found: dict[str, float] = {}
        for name in self.names:
            if name in _ERROR_METRICS:
                total = float64[_ERROR_METRICS.index(name)]
                found[name] = float(total / int64[self._num_counts])
            elif name == "accuracy":
                found[name] = float(hits.sum() / actual.sum())
            else:
                found[name] = _ratio(name, hits, predicted, actual)
        return found


def _ratio(name: str, hits: torch.Tensor, predicted: torch.Tensor, actual: torch.Tensor) -> float:
    """Precision, recall or F1 with scikit-learn's conventions.

    Macro averages run over the classes that occur as target or prediction; 0/0 counts as 0. An
    output beyond the last class counts as a class of its own that never occurs as target.
    """
    hits = torch.cat([hits, hits.new_zeros(1)])
    actual = torch.cat([actual, actual.new_zeros(1)])
    kind, _, average = name.partition("_")
    if average == "micro":
        hits, predicted, actual = hits.sum(0, True), predicted.sum(0, True), actual.sum(0, True)
    occurs = (predicted + actual) > 0
    top, bottom = {
        "precision": (hits, predicted),
        "recall": (hits, actual),
        "f1": (2 * hits, predicted + actual),
    }[kind]
    by_class = torch.where(bottom > 0, top / bottom.clamp(min=1), torch.zeros_like(top))
    return float(by_class[occurs].mean())
