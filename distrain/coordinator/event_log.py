"""`events.jsonl`: what a run does, one JSON object a line."""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from heapq import nsmallest
from pathlib import Path
from threading import RLock
from typing import Any

from data_pipeline.durable import write_whole
from data_pipeline.errors import StorageError
from distrain.coordinator.log_tail import cut_back, scores_in
from distrain.coordinator.observers import (
    Ending,
    EpochRecord,
    bad_fields,
    finite_or_none,
    skipped_text,
)
from distrain.coordinator.progress import say
from distrain.coordinator.run_layout import EVENTS
from distrain.parallel.split import BatchPlan
from distrain.practice.inspection import Inspection
from distrain.step import StepResult

MOST_PENDING_BYTES = 2**26
"""Events that are kept for a full disk; with more, the run ends."""


MOST_CLASSES, MOST_CONFUSIONS = 32, 100
"""Of a confusion matrix, a line has so many classes, or else so many of its largest entries."""


class EventLog:
    """Writes the log, each line by one call."""

    def __init__(
        self,
        folder: Path,
        step: int = 0,
        check: Callable[[], None] | None = None,
        *,
        times_back: int = 0,
        epochs: int | None = None,
    ) -> None:
        """Starts the file anew, or cuts it back to what a run that goes on from `step` has done.

        `times_back` is how often it has gone back until then; of epochs so many are behind it, all
        that the log tells of unless given. `check` is asked whether this start may still write,
        where somebody else has written.
        """
        self._path, self._check = folder / EVENTS, check
        self._pending, self._failing = b"", False
        self._writing = RLock()  # the watcher of stops and the guard against hangs write as well
        self._times_back = times_back
        try:
            if (step or times_back) and self._path.exists():
                cut_back(self._path, step, times_back, epochs)
            else:
                write_whole(self._path, b"")
            self._file = self._path.open("ab", buffering=0)
            self._size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error

    def _write(self, event: str, **fields: Any) -> None:
        """Adds a line; one that finds the disk full is kept, and written with those to come."""
        if self._times_back:
            fields["times_back"] = self._times_back
        line = json.dumps({"event": event, **fields, "time": round(time.time(), 3)}) + "\n"
        with self._writing:
            self._pending += line.encode()
            try:
                self._write_pending()
            except StorageError as error:
                if len(self._pending) > MOST_PENDING_BYTES:
                    raise
                if not self._failing:
                    say(f"{error}: the run goes on, and its events are kept until there is room")
                self._failing = True
            else:
                self._failing = False

    def _write_pending(self) -> None:
        if os.fstat(self._file.fileno()).st_size != self._size and self._check is not None:
            self._check()
        try:
            while self._pending:
                written = self._file.write(self._pending)
                self._pending = self._pending[written:]
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                self._size = os.fstat(self._file.fileno()).st_size

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
        """The step's loss, gradient norm, learning rate and samples; a look inside on its own."""
        scale = {} if result.loss_scale is None else {"loss_scale": result.loss_scale.scale}
        self._write(
            "step",
            step=result.batch.step + 1,
            epoch=result.batch.epoch + 1,
            loss=finite_or_none(result.totals.loss),
            grad_norm=finite_or_none(result.grad_norm),
            lr=finite_or_none(result.lr),
            samples=result.totals.num_samples,
            **scale,
        )
        if result.inspection is not None:
            self._write("inspect", step=result.batch.step + 1, **inspected(result.inspection))
        if text := skipped_text(result):
            fields = scale if result.bad is None else bad_fields(result.bad)
            name = "overflow" if result.bad is None else "skip"
            self._write(name, **{**fields, "text": text, "step": result.batch.step + 1})

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
            **logged_confusion(record),
        )

    def end(self, ending: Ending) -> None:
        """How it ended."""
        fields = {"reason": ending.reason, "exit_code": ending.exit_code, **ending.details}
        if ending.best_epoch is not None:
            fields["best_epoch"] = ending.best_epoch
        with self._writing:
            try:
                self._write("end", **fields)
                self._write_pending()
            finally:
                self._file.close()

    def note(self, event: str, text: str, **fields: Any) -> None:
        """An event of its own name; after one of going back all lines say how often that was."""
        self._times_back = fields.get("times_back", self._times_back)
        self._write(event, text=text, **fields)


def inspected(inspection: Inspection) -> dict[str, dict[str, float | None]]:
    """What a look inside has found: three numbers for each parameter, by its name."""
    columns = {
        "gradient_norm": inspection.gradient_norms,
        "weight_norm": inspection.weight_norms,
        "update_ratio": inspection.update_ratios,
    }
    return {
        kind: {name: finite_or_none(v) for name, v in zip(inspection.names, values, strict=True)}
        for kind, values in columns.items()
    }


def logged_confusion(record: EpochRecord) -> dict[str, dict[str, list[list[int]]]]:
    """What a line tells of matrices: all of a small one.

    Of one with more than 32 classes it has the 100 largest confusions, under a name of their own,
    as `[target, prediction, count]`.
    """
    small = {name: matrix for name, matrix in record.confusion.items() if _is_small(matrix)}
    large = {
        name: _largest(matrix) for name, matrix in record.confusion.items() if not _is_small(matrix)
    }
    found = {"confusion": small, "largest_confusions": large}
    return {key: matrices for key, matrices in found.items() if matrices}


def _is_small(matrix: list[list[int]]) -> bool:
    return len(matrix) <= MOST_CLASSES


def _largest(matrix: list[list[int]]) -> list[list[int]]:
    wrong = (
        [target, prediction, count]
        for target, counts in enumerate(matrix)
        for prediction, count in enumerate(counts)
        if count and target != prediction
    )
    return nsmallest(MOST_CONFUSIONS, wrong, key=lambda one: (-one[2], one[0], one[1]))


def recorded_epochs(path: Path) -> tuple[EpochRecord, ...]:
    """The epochs that a log tells of; those that the run has gone back from don't count."""
    if not path.exists():
        return ()
    events: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for line in file:
            if line.startswith(b'{"event": "epoch"'):
                events.append(json.loads(line))
            elif line.startswith(b'{"event": "go_back"'):
                step = json.loads(line)["step"]
                events = [event for event in events if event["step"] <= step]
    return tuple(
        EpochRecord(
            event["epoch"],
            event["step"],
            {n: math.nan if score is None else score for n, score in scores_in(event).items()},
            event["seconds"],
            event["samples_per_s"],
            event.get("confusion", {}),
        )
        for event in events
    )
