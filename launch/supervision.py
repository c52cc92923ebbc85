"""What becomes of a group of workers, whoever has started them: the rules for restarts and stops.

The first cause of a failure decides whether a restart is of use, survivors are killed at once (all
that they have is in the last checkpoint), and a signal is handed on, so that the workers can save.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from distrain.coordinator.restart_note import leave_restart
from distrain.coordinator.stops import RESIZE, StoppedError, heeded, signal_name
from distrain.errors import ExitCode
from launch import fork_server
from launch.failure import (
    HANDED_ON,
    STEPPED,
    Cause,
    TerminatedError,
    first_cause,
    forced_end,
    is_failure,
    is_retried,
    read_reports,
    tell,
    unsaved,
    while_stopping,
)
from launch.hang_watch import HangWatch
from launch.output.worker_output import WorkerOutput

SETTLE_S = 0.3
"""After a worker has failed: time for the one that it failed for want of to be seen to end."""

SAVED_SETTLE_S = 1.0
"""After a worker has ended for a stop, all being saved then: time for the others to end as well."""

_ENDING_S = 0.01
"""Where some have ended, the others are about to."""

ALL_AGAIN = "all workers start again"
"""What comes after a loss, unless fewer workers go on."""

_WITHOUT_BAR = "\r\x1b[2K\x1b[?25h"
"""Erases what a killed worker has drawn, and shows the cursor that its bar has hidden."""


class Supervision:
    """Looks after the workers of one machine, over all their starts.

    Attributes:
        cause: Why the workers failed the last time; None if they never did.
        gives_up: Whether they are not to be started again after that.
        has_stepped: Whether any start so far has done a step.
    """

    def __init__(
        self,
        processes: Callable[[], Mapping[int, BaseProcess]],
        kill: Callable[[], None],
        folder: Path,
        output: WorkerOutput | None = None,
        *,
        grace_s: float,
        max_restarts: int,
        on_loss: Callable[[Cause, bool], str] = lambda _cause, _stepped: ALL_AGAIN,
        on_hang: Callable[[], None] = lambda: None,
    ) -> None:
        """Takes the signals that are handed on.

        Args:
            processes: The workers of this start, by rank.
            kill: Kills those that are alive, and waits for their end.
            folder: Takes the workers' reports.
            output: Takes what the workers write; None where it goes where this process's does.
            grace_s: A stop is enforced after so long.
            max_restarts: How often all workers are started again after one was lost.
            on_loss: Is told the cause, and whether that start had done a step; says what comes.
            on_hang: Is called while workers that hang, and those that wait for them, are there.
        """
        self.cause: Cause | None = None
        self.gives_up = False
        self.has_stepped = False
        self._processes, self._kill = processes, kill
        self._folder, self._output = folder, output
        self._on_loss, self._on_hang = on_loss, on_hang
        self._resize_until: float | None = None
        self._grace_s, self._max_restarts, self._restarts = grace_s, max_restarts, 0
        self._asked: int | None = None
        self._waits = False
        self._asked_at = 0.0
        self._interrupts = 0
        self._told: set[int] = set()
        self._hangs = HangWatch(folder)
        for number in heeded(HANDED_ON):
            signal.signal(number, self._hand_on)

    @property
    def is_stopping(self) -> bool:
        """Whether the launcher was asked to end."""
        return self._asked is not None

    def prepare(self, ranks: Sequence[int], launch: str | None = None) -> None:
        """Comes before each start, of workers of these ranks; `launch` names it on all machines."""
        fork_server.start()  # it may have died, and the workers with it
        for report in (*self._folder.glob("rank-*.json"), self._folder / STEPPED):
            report.unlink(missing_ok=True)
        self._resize_until = None
        self._hangs.prepare()
        if self._output is not None:
            self._output.begin(ranks, launch)

    def resize(self) -> None:
        """Has the workers save and end, to be started again: no failure, and no restart either."""
        if self._asked is None and self._resize_until is None:
            self._resize_until = time.monotonic() + self._grace_s
            for process in self._processes().values():
                _send(process, RESIZE)

    def signal_workers(self) -> None:
        """Hands the signal on that has been asked to end by, if there was one."""
        for process in self._processes().values():
            pid = process.pid
            if self._asked is None or pid is None or pid in self._told:
                continue  # a second Ctrl-C would have another meaning
            self._told.add(pid)
            _send(process, self._asked)

    def wait(self, most_s: float) -> None:
        """Returns after so long, or as soon as a worker ends."""
        processes = self._processes().values()
        alive = [process.sentinel for process in processes if process.exitcode is None]
        if len(alive) == len(processes) > 0:
            connection.wait(alive, timeout=most_s)
        else:
            time.sleep(_ENDING_S)

    def exit_codes(self) -> dict[int, int]:
        """By rank, of workers that have ended."""
        codes = {rank: process.exitcode for rank, process in self._processes().items()}
        return {rank: code for rank, code in codes.items() if code is not None}

    def have_failed(self) -> bool:
        """Whether a worker has failed, or did not end in time; then all are dead by now."""
        if any(self.exit_codes().values()):
            self.judge()
            return True
        if self._asked is not None and self._is_overdue():
            self._end(forced_end(self._asked, self._grace_s, enough=self._interrupts > 1))
            return True
        until = self._resize_until if self._asked is None else None
        if until is not None and time.monotonic() > until:
            self._end(unsaved(self._grace_s))
            return True
        # Who is asked to save and end has a time limit of its own.
        is_watched = self._asked is None and until is None
        hang = self._hangs.look(self._alive()) if is_watched else None
        if hang is not None:
            self._on_hang()
            self._end(hang)
        return hang is not None

    def leave_stacks(self) -> str:
        """Has the workers that are alive leave their stacks in the run's folder; says where."""
        return self._hangs.leave_stacks(self._alive())

    def _alive(self) -> list[int]:
        """The processes of the workers that have not ended."""
        started = [(process.pid, process.exitcode) for process in self._processes().values()]
        return [pid for pid, code in started if pid is not None and code is None]

    def are_done(self) -> bool:
        """Whether all have ended, and well."""
        codes = self.exit_codes()
        return len(codes) == len(self._processes()) > 0 and not any(codes.values())

    def judge(self) -> None:
        """Finds the cause of a failure, and what follows from it."""
        codes = self._settled()
        cause = first_cause(read_reports(self._folder), codes)
        if cause.goes_on and self._asked is not None:
            text = str(StoppedError(signal_name(self._asked)))
            cause = Cause(0, ExitCode.STOPPED, text)
        if self._asked is not None and cause.exit_code == ExitCode.WORKER_LOST:
            cause = while_stopping(cause, self._asked, codes.values())
        elif codes and all(code == ExitCode.WORKER_LOST for code in codes.values()):
            # Who has not ended may be the one that these have waited for.
            cause = replace(cause, text=cause.text + self.leave_stacks())
        self._end(cause)

    def abandon(self, cause: Cause) -> None:
        """Ends this start whatever its workers are doing."""
        self._end(cause)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A time without workers, in which a signal ends the launcher itself."""
        self._waits = True  # first: a signal that comes now is raised, and one before is seen
        try:
            if self._asked is not None:
                raise TerminatedError(self._asked)
            yield
        finally:
            self._waits = False

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        """Has the workers save and end; a second Ctrl-C has them end at once."""
        if self._waits:
            raise TerminatedError(number)
        self._interrupts += number == signal.SIGINT
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
            self.signal_workers()

    def _is_overdue(self) -> bool:
        """Whether workers that were asked to end have had their time."""
        if self._asked is None:
            return False
        return self._interrupts > 1 or time.monotonic() - self._asked_at > self._grace_s

    def _settled(self) -> dict[int, int]:
        """The workers' exit codes, once those that end together have done so."""
        since = time.monotonic()
        while True:
            codes = self.exit_codes()
            limit_s = SAVED_SETTLE_S if ExitCode.STOPPED in codes.values() else SETTLE_S
            # One that was killed has failed for want of nobody.
            is_clear = len(codes) == len(self._processes()) or -signal.SIGKILL in codes.values()
            if is_clear or self._is_overdue() or time.monotonic() - since > limit_s:
                return {rank: code for rank, code in codes.items() if code}
            time.sleep(0.01)

    def _end(self, cause: Cause) -> None:
        """Kills all, and says whether they start again."""
        self.cause = cause
        self._kill()
        stepped = (self._folder / STEPPED).exists()
        self.has_stepped = self.has_stepped or stepped
        if self._output is not None:
            self._output.end()
        if sys.stdout.isatty():
            tell(_WITHOUT_BAR, sys.stdout)
        if self._output is not None and is_failure(cause):
            self._output.tell_last_words(cause.rank)
        if cause.goes_on and self._asked is None:
            tell(f"distrain: {cause.text}\n", sys.stderr)
            leave_restart(self._folder, cause.text)
            return
        if self._asked is not None or not is_retried(cause) or self._restarts == self._max_restarts:
            self.gives_up = True
            return
        self._restarts += 1
        leave_restart(
            self._folder,
            cause.text,
            rank=cause.rank,
            exit_code=int(cause.exit_code),
            restart=self._restarts,
            most_restarts=self._max_restarts,
        )
        tell(
            f"distrain (rank {cause.rank}): {cause.text}\n"
            f"distrain: {self._on_loss(cause, stepped)} (restart {self._restarts} of "
            f"{self._max_restarts})\n",
            sys.stderr,
        )


def _send(process: BaseProcess, number: int) -> None:
    if process.pid is not None and not _has_ended(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _has_ended(process: BaseProcess) -> bool:
    """Not by `is_alive`, which takes the exit code: this may be within a signal's handler, while
    the main thread is just about to do so, and would then find none.
    """
    try:
        return bool(connection.wait([process.sentinel], timeout=0))
    except ValueError:  # it has just been started
        return False
