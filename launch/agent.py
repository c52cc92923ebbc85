"""Torch elastic's agent of one machine, with this project's rules for restarts and for stops.

Torch elastic restarts the workers after any failure, ends the others by the very signal that a
scheduler preempts with, and has them ended by the signals that it gets itself. Here the first cause
decides whether a restart is of use, survivors are killed at once (all that they have is in the last
checkpoint), and a signal is handed on, so that the workers can save.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

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

_TORCHS_OWN = (signal.SIGHUP, signal.SIGQUIT, signal.SIGURG)
_TAKEN_OVER = "TORCHELASTIC_SIGNALS_TO_HANDLE"
_SHOW_CURSOR = "\x1b[?25h"


class Agent(LocalElasticAgent):
    """Starts the workers, restarts them when one is lost, and hands signals on.

    Attributes:
        cause: Why the workers failed the last time; None if they never did.
    """

    def __init__(self, spec: WorkerSpec, folder: Path, grace_s: float) -> None:
        """`folder` takes the workers' reports; after `grace_s` a stop is enforced."""
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(folder)), start_method="forkserver")
        self.cause: Cause | None = None
        self._folder, self._grace_s = folder, grace_s
        self._asked: int | None = None
        self._asked_at = 0.0
        self._interrupts = 0
        for number in HANDED_ON:
            signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        """Has the workers save and end; a second Ctrl-C has them end at once."""
        self._interrupts += number == signal.SIGINT
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
            self._signal_workers()

    def _signal_workers(self) -> None:
        for process in self._processes():
            if self._asked is not None and process.pid is not None and process.is_alive():
                with suppress(ProcessLookupError):
                    os.kill(process.pid, self._asked)

    def _processes(self) -> Sequence[BaseProcess]:
        """The workers by local rank; on one machine that is their rank."""
        if not isinstance(self._pcontext, MultiprocessContext) or self._pcontext._pc is None:
            return []
        processes: Sequence[BaseProcess] = self._pcontext._pc.processes
        return processes

    def _exit_codes(self) -> dict[int, int]:
        """By rank, of workers that have ended."""
        codes = {rank: process.exitcode for rank, process in enumerate(self._processes())}
        return {rank: code for rank, code in codes.items() if code is not None}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        fork_server.start()  # it may have died, and the workers with it
        for report in self._folder.glob("rank-*.json"):
            report.unlink()
        # Torch elastic would take signals over here, also SIGHUP, which nohup ignores; the one that
        # it is left comes from nobody. A torch that does not ask takes four: they are taken back.
        os.environ[_TAKEN_OVER] = signal.SIGURG.name
        before = {number: signal.getsignal(number) for number in (*HANDED_ON, *_TORCHS_OWN)}
        try:
            started: dict[int, Any] = super()._start_workers(worker_group)
        finally:
            del os.environ[_TAKEN_OVER]
            for number, handler in before.items():
                signal.signal(number, handler)
        self._signal_workers()
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        judged = True
        if any(self._exit_codes().values()):
            self._judge()
        elif self._asked is not None and self._is_overdue():
            self.cause = forced_end(self._asked, self._grace_s, enough=self._interrupts > 1)
            self._give_up_or_restart(self.cause)
        else:
            judged = False
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed() and not judged:  # a worker has ended since we looked
            self._judge()
        codes = self._exit_codes()
        if not result.is_failed() and len(codes) == len(self._processes()) > 0:
            # All have ended with 0. Torch elastic waits for return values, which ours don't have.
            done = dict.fromkeys(codes)
            return RunResult(state=WorkerState.SUCCEEDED, return_values=done)
        return result

    def _judge(self) -> None:
        """Finds the cause of a failure, and what follows from it."""
        codes = self._settled()
        cause = first_cause(read_reports(self._folder), codes)
        if self._asked is not None and cause.exit_code == ExitCode.WORKER_LOST:
            cause = while_stopping(cause, self._asked, codes.values())
        self.cause = cause
        self._give_up_or_restart(cause)

    def _is_overdue(self) -> bool:
        """Whether workers that were asked to end have had their time."""
        if self._asked is None:
            return False
        return self._interrupts > 1 or time.monotonic() - self._asked_at > self._grace_s

    def _settled(self) -> dict[int, int]:
        """The workers' exit codes, once those that end together have done so."""
        since = time.monotonic()
        while True:
            codes = self._exit_codes()
            limit_s = SAVED_SETTLE_S if ExitCode.STOPPED in codes.values() else SETTLE_S
            all_ended = len(codes) == len(self._processes())
            if all_ended or self._is_overdue() or time.monotonic() - since > limit_s:
                return {rank: code for rank, code in codes.items() if code}
            time.sleep(0.01)

    def _give_up_or_restart(self, cause: Cause) -> None:
        if self._pcontext is not None:
            self._pcontext.close(signal.SIGKILL)
        if sys.stdout.isatty():  # a killed worker's progress bar has hidden it
            tell(_SHOW_CURSOR, sys.stdout)
        most = self._worker_group.spec.max_restarts
        if self._asked is not None or not is_retried(cause):
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            number = most - self._remaining_restarts + 1
            tell(
                f"distrain (rank {cause.rank}): {cause.text}\n"
                f"distrain: all workers start again (restart {number} of {most})\n",
                sys.stderr,
            )
