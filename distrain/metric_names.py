"""The metrics by name: which there are, what they need, whether less is better. No torch here."""

import math
from dataclasses import dataclass
from typing import Literal

from distrain.checks import near_names
from distrain.errors import ConfigError

Kind = Literal["classes", "rank", "confidence", "errors", "r2", "perplexity", "curve", "confusion"]
"""What a metric is made of: counts by class, the target's rank, the top probability, sums of
errors, moments, log-probabilities, all outputs at once, or a matrix of counts."""

_AVERAGES = ("", "_micro", "_weighted")

_PLAIN: dict[str, Kind] = {
    "accuracy": "classes",
    "balanced_accuracy": "classes",
    **{f"{name}{how}": "classes" for name in ("precision", "recall", "f1") for how in _AVERAGES},
    "roc_auc": "curve",
    "pr_auc": "curve",
    "confusion": "confusion",
    "mse": "errors",
    "mae": "errors",
    "huber": "errors",
    "r2": "r2",
    "perplexity": "perplexity",
}

_WITH_VALUE: dict[str, tuple[Kind, str]] = {
    "top": ("rank", "top_5"),
    "coverage": ("confidence", "coverage_0.9"),
    "covered_accuracy": ("confidence", "covered_accuracy_0.9"),
    "huber": ("errors", "huber_0.5"),
}
"""By the name before the value: the kind, and an example."""

METRICS = tuple(_PLAIN)
"""Metrics by name; precision, recall and f1 are macro averages over classes unless they say so."""

EXAMPLES = tuple(example for _, example in _WITH_VALUE.values())
"""Metrics whose name ends in a value of the user's choice."""

CONFUSION = "confusion"
"""The one that is a matrix, and so no score that a rule could go by."""

_LESS_IS_BETTER = ("loss", "mse", "mae", "huber", "perplexity")

OF_NUMBERS = ("mse", "mae", "huber", "r2")
"""What there is for targets that are numbers."""


@dataclass(frozen=True)
class Metric:
    """A metric, as its name says.

    Attributes:
        name: As given.
        stem: The name without its value.
        value: k of `top_k`, the threshold of `coverage_t` and `covered_accuracy_t`, or huber's
            delta.
    """

    name: str
    kind: Kind
    stem: str
    value: float = math.nan

    @property
    def in_training(self) -> bool:
        """Whether the steps of an epoch can measure it: from a few words that add up."""
        return self.kind not in ("curve", "confusion")

    @property
    def needs_classes(self) -> bool:
        """Whether the target has to be a class label."""
        return not self.of_numbers and self.kind != "perplexity"

    @property
    def of_numbers(self) -> bool:
        """Whether outputs and targets are numbers to be compared."""
        return self.kind in ("errors", "r2")


def metric(name: str) -> Metric:
    """What a name means.

    Raises:
        ConfigError: there is no such metric, or its value is out of range.
    """
    if name in _PLAIN:
        return Metric(name, _PLAIN[name], name, 1.0 if name == "huber" else math.nan)
    stem, _, text = name.rpartition("_")
    if stem in _WITH_VALUE:
        try:
            value = int(text) if stem == "top" else float(text)
        except ValueError:
            value = math.nan
        if not (0 < value < math.inf) or (_WITH_VALUE[stem][0] == "confidence" and value > 1):
            rule = {
                "rank": "a whole number from 1 on",
                "confidence": "a probability above 0, up to 1",
            }.get(_WITH_VALUE[stem][0], "a number above 0")
            raise ConfigError(
                f"metric {name!r} ends in {text!r}; {rule} is wanted, as in {_WITH_VALUE[stem][1]}"
            )
        return Metric(name, _WITH_VALUE[stem][0], stem, value)
    raise ConfigError(f"there is no metric {name!r}; {near_names(name, (*METRICS, *EXAMPLES))}")


def is_error(score: str) -> bool:
    """Whether less of a score is better: losses and errors, of training or a validation set.

    Scores are `loss`, a metric's name, or one of these after `val_` or `val_SET_`.
    """
    parts = score.split("_")
    # The metric is the longest ending that is one: val_night_huber_0.5 is huber_0.5 of "night".
    for start in range(len(parts)):
        name = "_".join(parts[start:])
        if name == "loss":
            return True
        try:
            return metric(name).stem in _LESS_IS_BETTER
        except ConfigError:
            continue
    return False
