"""A thread that writes checkpoints while training goes on: one at a time, at most one behind."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.daemon import begun
from distrain.coordinator.run_layout import folder_name
from distrain.coordinator.run_state import RunState

LAST_SAVE_PAUSES_S = (0.2, 1.0)
"""Before a run that is asked to stop tries again to save."""

Write = Callable[[RunState, CheckpointContents], int]
"""Writes a checkpoint and gives its bytes; raises StorageError where it can't."""


@dataclass(frozen=True)
class Written:
    """What became of a checkpoint.

    Attributes:
        step: Whose state it has.
        num_bytes: Of its files.
        write_s: From the begin to the end of writing.
        trouble: Why it could not be written; empty where it was.
    """

    step: int
    num_bytes: int
    write_s: float
    trouble: str = ""


def write_timed(write: Write, state: RunState, contents: CheckpointContents) -> Written:
    """Writes a checkpoint; one that can't be written is told, and not raised.

    Raises:
        ConfigError: a newer start has taken the run over.
    """
    began = time.monotonic()
    try:
        num_bytes = write(state, contents)
    except StorageError as error:
        return Written(state.step, 0, time.monotonic() - began, str(error))
    return Written(state.step, num_bytes, time.monotonic() - began)


class WriteNews:
    """Tells what became of checkpoints; of one that failed once all workers know.

    Attributes:
        failed_step: Of the newest one that could not be written; 0 where the last one was.
    """

    def __init__(self, note: Callable[..., None]) -> None:
        """`note(event, text, **fields)` tells the observers."""
        self._note, self._untold = note, ""
        self.failed_step = 0

    def told(self, written: Written, stall_s: float) -> None:
        """One was written, or was not; training stood still for so long."""
        if written.trouble:
            self.note_failure()
            self.failed_step = written.step
            self._untold = f"no checkpoint at step {written.step}: {written.trouble}"
            return
        self.failed_step = 0
        self._note(
            "checkpoint",
            f"wrote {folder_name(written.step)}",
            step=written.step,
            bytes=written.num_bytes,
            stall_s=round(stall_s, 6),
            write_s=round(written.write_s, 4),
        )

    def note_failure(self) -> None:
        """Notes the newest failure, unless it is noted."""
        if self._untold:
            text, self._untold = self._untold, ""
            self._note("checkpoint_failed", text)


def write_last(write: Callable[[], Written], news: WriteNews) -> None:
    """Writes a run's last checkpoint, and tells of it; training stands still meanwhile.

    Raises:
        StorageError: it could not be written, again and again.
    """
    for pause_s in (*LAST_SAVE_PAUSES_S, None):
        written = write()
        if not written.trouble:
            news.told(written, written.write_s)
            return
        if pause_s is None:
            raise StorageError(written.trouble)
        news.told(written, 0.0)
        news.note_failure()
        time.sleep(pause_s)


class BackgroundWriter:
    """Does one thing at a time in a thread of its own."""

    def __init__(self, write: Write | None) -> None:
        """`write` is called in the thread; None where there is only something to `prepare`."""
        self._write = write
        self._job: Future[Written | None] | None = None
        self._changing = threading.Lock()
        self._prepares = False

    @property
    def is_busy(self) -> bool:
        """Whether what was submitted is not done."""
        job = self._job
        return job is not None and not job.done()

    @property
    def is_preparing(self) -> bool:
        """Whether it is busy with something else than a checkpoint."""
        return self._prepares and self.is_busy

    def submit(self, state: RunState, contents: CheckpointContents) -> None:
        """Has a checkpoint written; what was submitted before must have been told of."""
        write = self._write
        assert write is not None
        self._prepares = False
        self._begin(lambda: write_timed(write, state, contents))

    def prepare(self, work: Callable[[], None]) -> None:
        """Has something else done meanwhile."""
        self._prepares = True
        self._begin(work)

    def _begin(self, work: Callable[[], Written | None]) -> None:
        with self._changing:
            assert self._job is None
            self._job = begun(work, "distrain-checkpoint")

    def told(self, *, wait: bool = False) -> Written | None:
        """What became of the last checkpoint, once; None where there is nothing (yet) to tell.

        Raises:
            What was raised in the thread: ConfigError where a newer start has taken the run over.
        """
        with self._changing:
            job = self._job
            if job is None or not (wait or job.done()):
                return None
            try:
                return job.result()
            finally:
                self._job = None
