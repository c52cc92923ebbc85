"""The data sets that a run is measured on after each epoch: one, or several by name."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from data_pipeline.dataset import Dataset
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.stops import StopAskedError
from distrain.errors import ConfigError
from distrain.evaluate import Scores
from distrain.metric_names import is_error

Validation = Dataset | Mapping[str, Dataset] | None
"""What a person gives: with names, `{"clean": ..., "shifted": ...}`, scores have them."""

_NAME = re.compile(r"[\w.-]+")


@dataclass
class Measured:
    """What an epoch's evaluation brought.

    Attributes:
        scores: By `val_NAME`, or `val_SET_NAME` where sets have names.
        confusion: Matrices, by names of the same kind.
    """

    scores: dict[str, float] = field(default_factory=dict)
    confusion: dict[str, list[list[int]]] = field(default_factory=dict)


class ValidationSets:
    """Data sets by the prefix of their scores.

    Attributes:
        by_prefix: In the order given: one as `val_`, or each as `val_SET_`.
    """

    def __init__(self, given: Validation) -> None:
        """Takes what a person gives.

        Raises:
            ConfigError: there are no sets in what is given, or a name is none.
        """
        self.by_prefix: dict[str, Dataset] = {}
        if isinstance(given, Dataset):
            self.by_prefix = {"val_": given}
        elif given is not None:
            if not given:
                raise ConfigError("validation has no data set: give one, several by name, or None")
            for name in given:
                if not _NAME.fullmatch(name):
                    raise ConfigError(f"validation has {name!r}, which is no name such as shifted")
            self.by_prefix = {f"val_{name}_": dataset for name, dataset in given.items()}

    @property
    def identity(self) -> str:
        """Which data is measured, for the run's identity."""
        if list(self.by_prefix) == ["val_"]:
            return _identity(self.by_prefix["val_"])
        named = [f"{prefix}={_identity(data)}" for prefix, data in self.by_prefix.items()]
        return ", ".join(named) or "none"

    def directions(self, metrics: MetricSet) -> dict[str, bool | None]:
        """By score that each epoch will have: whether less is better, None where nobody says.

        Raises:
            ConfigError: two scores have one name.
        """
        others = metrics.directions()
        in_training = ["loss", *metrics.in_training().names]
        found = {name: is_error(name) for name in in_training}
        directions: dict[str, bool | None] = dict(found)
        for prefix in self.by_prefix:
            for name in ("loss", *metrics.names):
                if f"{prefix}{name}" in directions:
                    raise ConfigError(
                        f"two scores are called {prefix}{name}: give a validation set another name"
                    )
                less = others[name] if name in others else is_error(name)
                directions[f"{prefix}{name}"] = less
        return directions

    def measure(
        self,
        evaluate: Callable[[Dataset, Callable[[], int]], Scores],
        raised: Callable[[], int],
    ) -> Measured:
        """Evaluates on each; `raised()` is what asks this worker to stop.

        Raises:
            StopAskedError: a worker has been asked to stop; on all workers alike.
        """
        found = Measured()
        done, rows = 0, sum(dataset.num_rows for dataset in self.by_prefix.values())
        for prefix, dataset in self.by_prefix.items():
            try:
                scores = evaluate(dataset, raised)
            except StopAskedError as left:
                share = (done + left.share_done * dataset.num_rows) / rows
                raise StopAskedError(left.flags, share) from None
            done += dataset.num_rows
            found.scores |= {f"{prefix}{name}": score for name, score in scores.items()}
            if scores.confusion is not None:
                found.confusion[f"{prefix}confusion"] = scores.confusion.tolist()
        return found


def _identity(dataset: Dataset) -> str:
    return f"{dataset.part}@{dataset.digest}"
