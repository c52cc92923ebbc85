"""Those who are told how a run goes, on rank 0: none of them can change it."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from data_pipeline.durable import write_whole
from data_pipeline.errors import StorageError
from distrain.parallel.split import BatchPlan
from distrain.step import StepResult

EVENTS = "events.jsonl"
TENSORBOARD = "tensorboard"

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
        samples_per_s: Training samples over the training's time.
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


class EventLog:
    """`events.jsonl`: one JSON object a line, each line written by one call."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Starts the file anew, or cuts it back to what a run that goes on from `step` has done."""
        self._path = folder / EVENTS
        kept = events_until(self._path, step) if step else []
        write_whole(self._path, b"".join(json.dumps(event).encode() + b"\n" for event in kept))
        try:
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error

    def _write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"event": event, **fields, "time": round(time.time(), 3)}) + "\n"
        try:
            self._file.write(line.encode())
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """What the run is made of."""
        self._write(
            "begin",
            epochs=epochs,
            rows=plan.num_rows,
            steps_per_epoch=plan.steps_per_epoch,
            global_batch=plan.global_batch,
            micro_batch=plan.micro_batch,
        )

    def step(self, result: StepResult) -> None:
        """The step's loss, gradient norm, learning rate and samples."""
        self._write(
            "step",
            step=result.batch.step + 1,
            epoch=result.batch.epoch + 1,
            loss=finite_or_none(result.totals.loss),
            grad_norm=result.grad_norm,
            lr=finite_or_none(result.lr),
            samples=result.totals.num_samples,
        )

    def epoch(self, record: EpochRecord) -> None:
        """The epoch's scores."""
        scores = {name: finite_or_none(score) for name, score in record.scores.items()}
        self._write(
            "epoch",
            epoch=record.epoch,
            step=record.step,
            **scores,
            seconds=round(record.seconds, 3),
            samples_per_s=round(record.samples_per_s, 1),
        )

    def end(self, ending: Ending) -> None:
        """How it ended."""
        fields = {"reason": ending.reason, "exit_code": ending.exit_code, **ending.details}
        if ending.best_epoch is not None:
            fields["best_epoch"] = ending.best_epoch
        try:
            self._write("end", **fields)
        finally:
            self._file.close()

    def note(self, event: str, text: str, **fields: Any) -> None:
        """An event of its own name."""
        self._write(event, text=text, **fields)


def events_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The events of a log up to a step; a line that a crash has cut short is left out."""
    kept: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event["event"] != "end" and event.get("step", 0) <= step:
            kept.append(event)
    return kept


class TensorBoardLog:
    """Scalars for TensorBoard: `train/...` by step, `epoch/...` by epoch."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        """Opens a writer in the run's folder; points after `step` are those of this start."""
        purge = step + 1 if step else None
        self._writer: Any = SummaryWriter(str(folder / TENSORBOARD), purge_step=purge)

    def note(self, event: str, text: str, **fields: Any) -> None:
        """Nothing that a curve shows."""

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """Nothing to tell yet."""

    def step(self, result: StepResult) -> None:
        """A point of each training curve, at every tenth step."""
        number = result.batch.step + 1
        if number % TENSORBOARD_EVERY == 0:
            self._writer.add_scalar("train/loss", result.totals.loss, number)
            self._writer.add_scalar("train/grad_norm", result.grad_norm, number)
            self._writer.add_scalar("train/lr", result.lr, number)

    def epoch(self, record: EpochRecord) -> None:
        """The epoch's scores."""
        for name, score in record.scores.items():
            self._writer.add_scalar(f"epoch/{name}", score, record.epoch)
        self._writer.add_scalar("speed/samples_per_s", record.samples_per_s, record.epoch)

    def end(self, ending: Ending) -> None:  # noqa: ARG002 - an observer is told how it ended
        """Closes the writer."""
        self._writer.close()
