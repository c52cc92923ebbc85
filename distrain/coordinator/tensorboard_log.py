"""Scalars for TensorBoard, written by the caller's own thread: its errors come to who can act.

The file is the one that TensorBoard's writers make: records of `Event` messages.
"""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from data_pipeline.errors import StorageError
from distrain.coordinator.event_log import inspected
from distrain.coordinator.observers import Ending, EpochRecord
from distrain.coordinator.progress import say
from distrain.coordinator.run_layout import TENSORBOARD
from distrain.parallel.split import BatchPlan
from distrain.step import StepResult

EVERY_STEPS = 10
"""Steps between two points of a training curve."""


class TensorBoardLog:
    """Curves over steps: `train/...`, `checkpoint/...`, `phases/...`, and `epoch/...` at its end.

    All by the one axis that TensorBoard can cut back where a run goes on from an earlier step.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        """Opens a file in the run's folder; of a run that goes on, points after `step` are its.

        Raises:
            StorageError: it can't be written.
        """
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        path = folder / TENSORBOARD / name
        try:
            path.parent.mkdir(exist_ok=True)
            self._writer: Any = RecordWriter(path.open("wb"))
            self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
            if step is not None:  # what other files have from here on was cut off
                self._begin_after(step)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error

    def _write(self, event: Any) -> None:
        if self._writer is None:
            return
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def _begin_after(self, step: int) -> None:
        """From here on, points after that step take the place of those that there are."""
        begins = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=step + 1, session_log=begins))

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """Nothing to tell yet."""

    def step(self, result: StepResult) -> None:
        """A point of each training curve, at every tenth step; all of each look inside."""
        number = result.batch.step + 1
        if number % EVERY_STEPS == 0:
            self._point("train/loss", result.totals.loss, number)
            if not result.skipped:  # what has overflowed has no norm
                self._point("train/grad_norm", result.grad_norm, number)
            if result.loss_scale is not None:
                self._point("train/loss_scale", result.loss_scale.scale, number)
            self._point("train/lr", result.lr, number)
        if result.inspection is not None:
            for kind, values in inspected(result.inspection).items():
                for name, value in values.items():
                    if value is not None:
                        self._point(f"{kind}/{name}", value, number)

    def epoch(self, record: EpochRecord) -> None:
        """The epoch's scores."""
        for name, score in record.scores.items():
            self._point(f"epoch/{name}", score, record.step)
        self._point("speed/samples_per_s", record.samples_per_s, record.step)

    def _point(self, name: str, value: float, at: int) -> None:
        """Adds a point."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        with self._until_full():
            self._write(Event(wall_time=time.time(), step=at, summary=summary))

    @contextmanager
    def _until_full(self) -> Iterator[None]:
        """On a full disk the curves end, and the run goes on."""
        try:
            yield
        except OSError as error:
            say(f"the curves for TensorBoard end here: {error.strerror}")
            self._close()

    def note(self, event: str, text: str, **fields: Any) -> None:  # noqa: ARG002 - a curve has none
        """Checkpoints and phases are curves; where a run has gone back, all begin anew."""
        if event == "go_back":
            with self._until_full():
                self._begin_after(fields["step"])
        for name, value in _curves(event, fields).items():
            self._point(f"{event}/{name}", value, fields["step"])

    def end(self, ending: Ending) -> None:  # noqa: ARG002 - an observer is told how it ended
        """Closes the file."""
        self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # what a full disk has not taken is lost
                writer.close()


def _curves(event: str, fields: Mapping[str, Any]) -> Mapping[str, float]:
    """Bytes and seconds of a checkpoint; where the workers' time goes, in seconds a step."""
    if event == "checkpoint":
        return {name: fields[name] for name in ("bytes", "stall_s", "write_s")}
    return fields["seconds"] if event == "phases" else {}
