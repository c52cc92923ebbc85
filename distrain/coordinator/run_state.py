"""Where a run stands between two steps: together with weights and optimizer, all of its state.

Nothing random is in it: every draw is keyed by seed, step and position. The position in the data is
the number of steps done.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from distrain.bad_numbers import NumbersState
from distrain.coordinator.early_stopping import Progress, Verdict
from distrain.coordinator.ledger import LedgerTotals
from distrain.coordinator.observers import EpochRecord, finite_or_none
from distrain.coordinator.plateau import Fall
from distrain.learn.loss_scale import LossScale


@dataclass(frozen=True)
class RunState:
    """The coordinator's part of a run's state.

    Attributes:
        step: Steps done.
        progress: Early stopping's.
        stopped: Early stopping has ended the run.
        epochs: A record of each epoch done.
        totals: The ledger's totals over the steps of the epoch in hand; None at its begin.
        loss_scale: For the next step, where the loss is scaled; None before the first.
        fall: How far a plateau schedule has lowered the rates.
        numbers: What was seen of losses and gradients, and done about bad ones.
    """

    step: int = 0
    progress: Progress = field(default_factory=Progress)
    stopped: bool = False
    epochs: tuple[EpochRecord, ...] = ()
    totals: LedgerTotals | None = None
    loss_scale: LossScale | None = None
    fall: Fall = field(default_factory=Fall)
    numbers: NumbersState = field(default_factory=NumbersState)

    def after_step(
        self,
        totals: LedgerTotals,
        loss_scale: LossScale | None = None,
        numbers: NumbersState | None = None,
    ) -> "RunState":
        """The state after one more step; `numbers` stay unless given."""
        return replace(
            self,
            step=self.step + 1,
            totals=totals if self.totals is None else self.totals + totals,
            loss_scale=loss_scale,
            numbers=self.numbers if numbers is None else numbers,
        )

    def passes(self, steps_per_epoch: int) -> bool:
        """Whether the next step is one that is counted, and not done."""
        return self.step < self.numbers.pass_until and not self.ends_epoch(steps_per_epoch)

    def after_passing(self, steps_per_epoch: int, nothing: LedgerTotals) -> "RunState":
        """The state after those steps, or those of them that this epoch has.

        `nothing` are the totals of an epoch in which no step was done.
        """
        epochs_end = (self.step // steps_per_epoch + 1) * steps_per_epoch
        step = min(self.numbers.pass_until, epochs_end)
        return replace(self, step=step, totals=self.totals or nothing)

    def after_epoch(
        self, record: EpochRecord, verdict: Verdict, fall: Fall | None = None
    ) -> "RunState":
        """The state after an epoch's last step and its evaluation."""
        return replace(
            self,
            progress=verdict.progress,
            stopped=verdict.stop,
            epochs=(*self.epochs, record),
            totals=None,
            fall=fall or self.fall,
        )

    def ends_epoch(self, steps_per_epoch: int) -> bool:
        """Whether an epoch's steps are done, and its evaluation is not."""
        return self.totals is not None and self.step % steps_per_epoch == 0

    def to_json(self) -> dict[str, Any]:
        """Plain values; floats come back bit for bit."""
        return {
            "step": self.step,
            "best": finite_or_none(self.progress.best),
            "best_epoch": self.progress.best_epoch,
            "waited": self.progress.waited,
            "stopped": self.stopped,
            "epochs": [_record_to_json(record) for record in self.epochs],
            "totals": None if self.totals is None else _totals_to_json(self.totals),
            "loss_scale": None if self.loss_scale is None else vars(self.loss_scale),
            "fall": self.fall.to_json(),
            "numbers": self.numbers.to_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "RunState":
        """The state that `to_json` gave."""
        return cls(
            step=values["step"],
            progress=Progress(_float(values["best"]), values["best_epoch"], values["waited"]),
            stopped=values["stopped"],
            epochs=tuple(record_from_json(record) for record in values["epochs"]),
            totals=None if values["totals"] is None else _totals_from_json(values["totals"]),
            loss_scale=LossScale(**values["loss_scale"]) if values["loss_scale"] else None,
            fall=Fall.from_json(values["fall"]) if "fall" in values else Fall(),
            numbers=NumbersState.from_json(values["numbers"]),
        )


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _record_to_json(record: EpochRecord) -> dict[str, Any]:
    scores = {name: finite_or_none(score) for name, score in record.scores.items()}
    # Matrices stay in the log: the state is written often, with all epochs that were.
    return {**vars(record), "scores": scores, "confusion": {}}


def record_from_json(values: Mapping[str, Any]) -> EpochRecord:
    """An epoch's record from plain values, a score that is null being NaN."""
    scores = {name: _float(score) for name, score in values["scores"].items()}
    return EpochRecord(**{**values, "scores": scores})


def _totals_to_json(totals: LedgerTotals) -> dict[str, Any]:
    return {
        "loss_sum": totals.loss_sum,
        "weight": totals.weight,
        "num_samples": totals.num_samples,
        "metric_sums": totals.metric_sums.tolist(),
        "metric_counts": totals.metric_counts.tolist(),
    }


def _totals_from_json(values: Mapping[str, Any]) -> LedgerTotals:
    return LedgerTotals(
        loss_sum=values["loss_sum"],
        weight=values["weight"],
        num_samples=values["num_samples"],
        present=(),
        metric_sums=torch.tensor(values["metric_sums"], dtype=torch.float64),
        metric_counts=torch.tensor(values["metric_counts"], dtype=torch.int64),
    )
