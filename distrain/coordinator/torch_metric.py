"""Metrics of torchmetrics, or of anybody's with its two methods, over whole data sets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from distrain.errors import ConfigError, ProgramError
from distrain.metric_names import metric


class Accumulating(Protocol):
    """What torchmetrics calls a metric."""

    def update(self, outputs: torch.Tensor, target: torch.Tensor, /) -> object:
        """Takes in some samples."""
        ...

    def compute(self) -> object:
        """The metric over all samples so far: one number."""
        ...


@dataclass(frozen=True)
class TorchMetric:
    """A metric of torchmetrics for `Trainer(metrics=...)`, measured on validation sets.

        distrain.TorchMetric("kappa", lambda: torchmetrics.CohenKappa("multiclass", num_classes=10))

    Every worker gives one fresh metric all outputs and targets, gathered from the workers, in the
    data set's stored order and in pieces of a fixed size: the number is that of one process, at
    any number of workers, also for metrics that can't be merged.

    Attributes:
        name: What the score is called: `val_kappa`.
        factory: Makes the metric; it is called at each evaluation, and computes on the CPU.
        less_is_better: For rules in mode "auto"; by default what the metric's
            `higher_is_better` says.
    """

    name: str
    factory: Callable[[], Accumulating] = field(repr=False)
    less_is_better: bool | None = None

    def __post_init__(self) -> None:
        """Refuses a name that is taken, or that no score can have."""
        if not self.name.isidentifier():
            raise ConfigError(f"TorchMetric: {self.name!r} is no name such as cohen_kappa")
        try:
            metric(self.name)
        except ConfigError:
            pass
        else:
            raise ConfigError(f"TorchMetric: {self.name!r} is a metric of distrain's already")
        if self.name == "loss" or self.name.startswith("val_"):
            raise ConfigError(f"TorchMetric: {self.name!r} is taken: scores are loss and val_NAME")

    def direction(self) -> bool | None:
        """Whether less is better; None where nobody has said."""
        if self.less_is_better is not None:
            return self.less_is_better
        higher: bool | None = getattr(self.factory(), "higher_is_better", None)
        return None if higher is None else not higher

    def score(self, chunks: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """The metric over all outputs and targets, which come on the host and in order.

        Raises:
            ProgramError: it is not one number.
        """
        found = self.factory()
        _keep_to_itself(found)
        for outputs, target in chunks:
            found.update(outputs, target)
        value: Any = found.compute()
        if isinstance(value, int | float):
            return float(value)
        if torch.is_tensor(value) and value.numel() == 1:
            return float(value)
        what = f"shape {tuple(value.shape)}" if torch.is_tensor(value) else type(value).__name__
        raise ProgramError(
            f"the metric {self.name} computed {what}; a score is one number: choose an average, "
            "or one TorchMetric for each"
        )


def _keep_to_itself(found: object) -> None:
    """A torchmetrics metric would merge its state over all workers, and each has seen all."""
    inner = found.modules() if isinstance(found, torch.nn.Module) else [found]
    for one in inner:
        if hasattr(one, "distributed_available_fn"):
            one.distributed_available_fn = lambda: False
