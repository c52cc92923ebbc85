"""The deterministic words that travel with every step's gradients (rule 6), and where they lie.

    float64   loss sum | weight | metric sums ...
    int64     samples | micro-batches with a gradient, by parameter ... | metric counts ...

Every worker holds the same sum of them, and so comes to the same verdict with no leader to ask.
"""

from dataclasses import dataclass

import torch

from distrain.coordinator.metrics import MetricSet
from distrain.errors import ProgramError
from distrain.parallel.payload import Payload

_NUM_OWN_FLOAT64 = 2


@dataclass(frozen=True)
class Ledger:
    """Names the words of a payload for `num_parameters` trainable parameters and some metrics."""

    metrics: MetricSet
    num_parameters: int = 0

    @property
    def num_float64(self) -> int:
        """float64 words."""
        return _NUM_OWN_FLOAT64 + self.metrics.num_float64

    @property
    def num_int64(self) -> int:
        """int64 words."""
        return 1 + self.num_parameters + self.metrics.num_int64

    def write(
        self,
        payload: Payload,
        *,
        loss_sum: torch.Tensor,
        weight: torch.Tensor | float,
        num_samples: int,
        outputs: torch.Tensor | None,
        target: torch.Tensor | None,
    ) -> None:
        """Writes one micro-batch's words, all but `present`."""
        payload.float64[0] = loss_sum.detach()
        payload.float64[1] = weight
        payload.int64[0] = num_samples
        if self.metrics.given and (outputs is None or target is None):
            raise ProgramError(
                f"{', '.join(self.metrics.given)} can't be measured: the micro_batch_step returned "
                "no outputs"
            )
        if outputs is not None and target is not None:
            self.metrics.update(
                outputs,
                target,
                payload.float64[_NUM_OWN_FLOAT64:],
                payload.int64[1 + self.num_parameters :],
            )

    def present(self, payload: Payload) -> torch.Tensor:
        """By parameter, how many micro-batches gave it a gradient: `(num_parameters,)`, int64."""
        return payload.int64[1 : 1 + self.num_parameters]

    def read(self, payload: Payload) -> "LedgerTotals":
        """The totals, on the host."""
        loss_sum, weight, *sums = payload.float64.tolist()
        num_samples, *counts = payload.int64.tolist()
        return LedgerTotals(
            loss_sum=loss_sum,
            weight=weight,
            num_samples=num_samples,
            present=tuple(counts[: self.num_parameters]),
            metric_sums=torch.tensor(sums, dtype=torch.float64),
            metric_counts=torch.tensor(counts[self.num_parameters :], dtype=torch.int64),
        )

    @property
    def nothing(self) -> "LedgerTotals":
        """The totals of no micro-batch."""
        return LedgerTotals(
            loss_sum=0.0,
            weight=0.0,
            num_samples=0,
            present=(0,) * self.num_parameters,
            metric_sums=torch.zeros(self.metrics.num_float64, dtype=torch.float64),
            metric_counts=torch.zeros(self.metrics.num_int64, dtype=torch.int64),
        )


@dataclass(frozen=True)
class LedgerTotals:
    """The words of a whole step, or of a whole evaluation; those of several steps add up."""

    loss_sum: float
    weight: float
    num_samples: int
    present: tuple[int, ...]
    metric_sums: torch.Tensor
    metric_counts: torch.Tensor

    @property
    def loss(self) -> float:
        """The mean loss; NaN where the weight is 0."""
        return self.loss_sum / self.weight if self.weight else float("nan")

    def scores(self, metrics: MetricSet, prefix: str = "") -> dict[str, float]:
        """The loss and all metrics by name."""
        found = {"loss": self.loss, **metrics.scores(self.metric_sums, self.metric_counts)}
        return {f"{prefix}{name}": score for name, score in found.items()}

    def __add__(self, other: "LedgerTotals") -> "LedgerTotals":
        """The totals of both together, as for the steps of an epoch in their order."""
        return LedgerTotals(
            loss_sum=self.loss_sum + other.loss_sum,
            weight=self.weight + other.weight,
            num_samples=self.num_samples + other.num_samples,
            present=other.present,
            metric_sums=self.metric_sums + other.metric_sums,
            metric_counts=self.metric_counts + other.metric_counts,
        )
