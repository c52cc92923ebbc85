"""Those who are told how a run goes, on rank 0: none of them can change it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from distrain.errors import BadStepError, named_rows
from distrain.parallel.split import BatchPlan
from distrain.step import StepResult


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's outcome.

    Attributes:
        epoch: Counted from 1.
        step: Steps done so far.
        scores: `loss` and the metrics over the epoch's training steps, and over the validation
            set as `val_...`, or `val_SET_...` where there are several.
        seconds: Time for training and validation.
        samples_per_s: Training samples over the training's time; 0 where a run that went on had
            only the evaluation left.
        confusion: By `val_confusion` or `val_SET_confusion`, rows by target and columns by
            prediction; empty for epochs before a run was taken up, which the log alone tells of.
    """

    epoch: int
    step: int
    scores: Mapping[str, float]
    seconds: float
    samples_per_s: float
    confusion: Mapping[str, list[list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes:
        reason: `finished`, `stopped early`, or the error's message.
        exit_code: As in `distrain.errors.ExitCode`.
        best_epoch: The epoch whose weights the result has, if they were restored.
    """

    reason: str
    exit_code: int
    best_epoch: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Observer(Protocol):
    """Is told of each step and epoch, and of the end."""

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """The run starts."""
        ...

    def step(self, result: StepResult) -> None:
        """A step was done."""
        ...

    def epoch(self, record: EpochRecord) -> None:
        """An epoch was done, validation included."""
        ...

    def note(self, event: str, text: str, **fields: Any) -> None:
        """Something else happened: `text` says it to a person, `fields` to a program."""
        ...

    def end(self, ending: Ending) -> None:
        """The run ended, well or not."""
        ...


def skipped_text(result: StepResult) -> str:
    """Says that a step was skipped, for a person; nothing where it was not."""
    if result.bad is not None:
        return f"step {result.bad.step} is skipped: {bad_text(result.bad)}"
    if not result.skipped or result.loss_scale is None:
        return ""
    return (
        f"step {result.batch.step + 1} is skipped: the gradient overflowed; the loss scale is "
        f"{result.loss_scale.scale:g} now"
    )


def went_back_text(bad: BadStepError, to: int, left_out: int, lr_factor: float) -> str:
    """Says that the run goes on from an earlier step, and how, for a person."""
    how = f", leaving out {left_out} step{'s' * (left_out != 1)}" * bool(left_out)
    how += f", with {lr_factor:g} of the learning rate" * (lr_factor != 1)
    return f"back from step {bad.step} to step {to}{how}: {bad_text(bad)}"


def bad_text(bad: BadStepError) -> str:
    """What is wrong, and at most 32 rows."""
    return f"{bad.problem}; rows {named_rows(bad.rows)}" if bad.rows else bad.problem


def bad_fields(bad: BadStepError) -> dict[str, Any]:
    """A bad step for a program: all rows."""
    return {
        "bad_step": bad.step,
        "epoch": bad.epoch,
        "kind": bad.kind,
        "problem": bad.problem,
        "rows": bad.rows,
    }


def finite_or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
