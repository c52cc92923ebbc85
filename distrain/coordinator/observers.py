"""Those who are told how a run goes, on rank 0: none of them can change it."""

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from data_pipeline.errors import StorageError
from distrain.coordinator.run_layout import TENSORBOARD
from distrain.parallel.split import BatchPlan
from distrain.step import StepResult

TENSORBOARD_EVERY = 10
"""Steps between two points of a training curve."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch's outcome.

    Attributes:
        epoch: Counted from 1.
        step: Steps done so far.
        scores: `loss` and the metrics over the epoch's training steps, and over the validation
            set as `val_...`.
        seconds: Time for training and validation.
        samples_per_s: Training samples over the training's time; 0 where a run that went on had
            only the evaluation left.
    """

    epoch: int
    step: int
    scores: Mapping[str, float]
    seconds: float
    samples_per_s: float


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


def finite_or_none(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None


class TensorBoardLog:
    """Scalars for TensorBoard: `train/...` by step, `epoch/...` by epoch."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Opens a writer in the run's folder; points after `step` are those of this start."""
        purge = step + 1 if step else None
        try:
            self._writer: Any = SummaryWriter(str(folder / TENSORBOARD), purge_step=purge)
        except OSError as error:
            raise StorageError(f"cannot write {folder / TENSORBOARD}: {error.strerror}") from error

    def note(self, event: str, text: str, **fields: Any) -> None:
        """Nothing that a curve shows."""

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """Nothing to tell yet."""

    def step(self, result: StepResult) -> None:
        """A point of each training curve, at every tenth step."""
        number = result.batch.step + 1
        if number % TENSORBOARD_EVERY == 0:
            self._point("train/loss", result.totals.loss, number)
            self._point("train/grad_norm", result.grad_norm, number)
            self._point("train/lr", result.lr, number)

    def epoch(self, record: EpochRecord) -> None:
        """The epoch's scores."""
        for name, score in record.scores.items():
            self._point(f"epoch/{name}", score, record.epoch)
        self._point("speed/samples_per_s", record.samples_per_s, record.epoch)

    def _point(self, name: str, value: float, at: int) -> None:
        """Adds a point; on a full disk the curves end, and the run goes on."""
        if self._writer is None:
            return
        try:
            self._writer.add_scalar(name, value, at)
        except OSError as error:
            self._writer = None
            warnings.warn(f"the curves for TensorBoard end here: {error}", stacklevel=2)

    def end(self, ending: Ending) -> None:  # noqa: ARG002 - an observer is told how it ended
        """Closes the writer."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
