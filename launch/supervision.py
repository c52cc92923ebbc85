"""What becomes of a group of workers, whoever has started them: the rules for restarts and stops.

The first cause of a failure decides whether a restart is of use, survivors are killed at once (all
that they have is in the last checkpoint), and a signal is handed on, so that the workers can save.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from distrain.errors import ExitCode
from launch import fork_server
from launch.failure import (
    HANDED_ON,
    Cause,
    first_cause,
    forced_end,
    is_retried,
    read_reports,
    tell,
    while_stopping,
)

SETTLE_S = 0.3
"""After a worker has failed: time for the one that it failed for want of to be seen to end."""

SAVED_SETTLE_S = 1.0
"""After a worker has ended for a stop, all being saved then: time for the others to end as well."""

_SHOW_CURSOR = "\x1b[?25h"


class Supervision:
    """Looks after the workers of one machine, over all their starts.

    Attributes:
        cause: Why the workers failed the last time; None if they never did.
        gives_up: Whether they are not to be started again after that.
    """

    def __init__(
        self,
        processes: Callable[[], Sequence[BaseProcess]],
        kill: Callable[[], None],
        folder: Path,
        *,
        grace_s: float,
        max_restarts: int,
    ) -> None:
        """Takes the signals that are handed on.

        Args:
            processes: The workers of this start, by rank.
            kill: Kills those that are alive, and waits for their end.
            folder: Takes the workers' reports.
            grace_s: A stop is enforced after so long.
            max_restarts: How often all workers are started again.
        """
        self.cause: Cause | None = None
        self.gives_up = False
        self._processes, self._kill, self._folder = processes, kill, folder
        self._grace_s, self._max_restarts, self._restarts = grace_s, max_restarts, 0
        self._asked: int | None = None
        self._asked_at = 0.0
        self._interrupts = 0
        self._told: set[int] = set()
        for number in HANDED_ON:
            signal.signal(number, self._hand_on)

    def prepare(self) -> None:
        """Comes before each start."""
        fork_server.start()  # it may have died, and the workers with it
        for report in self._folder.glob("rank-*.json"):
            report.unlink()

    def signal_workers(self) -> None:
        """Hands the signal on that has been asked to end by, if there was one."""
        for process in self._processes():
            pid = process.pid
            if self._asked is None or pid is None or pid in self._told:
                continue  # a second Ctrl-C would have another meaning
            self._told.add(pid)
            if process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(pid, self._asked)

    def exit_codes(self) -> dict[int, int]:
        """By rank, of workers that have ended."""
        codes = {rank: process.exitcode for rank, process in enumerate(self._processes())}
        return {rank: code for rank, code in codes.items() if code is not None}

    def have_failed(self) -> bool:
        """Whether a worker has failed, or did not end in time; then all are dead by now."""
        if any(self.exit_codes().values()):
            self.judge()
            return True
        if self._asked is not None and self._is_overdue():
            self._end(forced_end(self._asked, self._grace_s, enough=self._interrupts > 1))
            return True
        return False

    def are_done(self) -> bool:
        """Whether all have ended, and well."""
        codes = self.exit_codes()
        return len(codes) == len(self._processes()) > 0 and not any(codes.values())

    def judge(self) -> None:
        """Finds the cause of a failure, and what follows from it."""
        codes = self._settled()
        cause = first_cause(read_reports(self._folder), codes)
        if self._asked is not None and cause.exit_code == ExitCode.WORKER_LOST:
            cause = while_stopping(cause, self._asked, codes.values())
        self._end(cause)

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        """Has the workers save and end; a second Ctrl-C has them end at once."""
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
            all_ended = len(codes) == len(self._processes())
            if all_ended or self._is_overdue() or time.monotonic() - since > limit_s:
                return {rank: code for rank, code in codes.items() if code}
            time.sleep(0.01)

    def _end(self, cause: Cause) -> None:
        """Kills all, and says whether they start again."""
        self.cause = cause
        self._kill()
        if sys.stdout.isatty():  # a killed worker's progress bar has hidden it
            tell(_SHOW_CURSOR, sys.stdout)
        if self._asked is not None or not is_retried(cause) or self._restarts == self._max_restarts:
            self.gives_up = True
            return
        self._restarts += 1
        tell(
            f"distrain (rank {cause.rank}): {cause.text}\n"
            f"distrain: all workers start again (restart {self._restarts} of "
            f"{self._max_restarts})\n",
            sys.stderr,
        )
