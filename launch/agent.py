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
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext

from distrain.errors import ExitCode
from launch.failure import HANDED_ON, Cause, first_cause, forced_end, is_retried, read_reports

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
        self._enough = False
        for number in HANDED_ON:
            signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, _frame: FrameType | None) -> None:
        """Has the workers save and end; a second Ctrl-C has them end at once."""
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
            self._signal_workers()
        elif number == signal.SIGINT:
            self._enough = True

    def _signal_workers(self) -> None:
        for process in self._processes():
            if self._asked is not None and process.pid is not None and process.is_alive():
                os.kill(process.pid, self._asked)

    def _processes(self) -> Sequence[BaseProcess]:
        """The workers by local rank; on one machine that is their rank."""
        if not isinstance(self._pcontext, MultiprocessContext) or self._pcontext._pc is None:
            return []
        processes: Sequence[BaseProcess] = self._pcontext._pc.processes
        return processes

    def _exit_codes(self) -> dict[int, int]:
        """By rank, of workers that have ended: one that has done its work waits for the others."""
        codes = {rank: process.exitcode for rank, process in enumerate(self._processes())}
        return {rank: code for rank, code in codes.items() if code is not None}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
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
        if self._exit_codes():
            codes = self._settled()
            self.cause = first_cause(read_reports(self._folder), codes)
            self._give_up_or_restart(self.cause)
        elif self._asked is not None and self._is_overdue():
            self.cause = forced_end(self._asked, self._grace_s, enough=self._enough)
            self._give_up_or_restart(self.cause)
        result: RunResult = super()._monitor_workers(worker_group)
        return result

    def _is_overdue(self) -> bool:
        return self._enough or time.monotonic() - self._asked_at > self._grace_s

    def _settled(self) -> dict[int, int]:
        """The workers' exit codes, once those that end together have done so."""
        since = time.monotonic()
        while True:
            codes = self._exit_codes()
            saved = ExitCode.STOPPED in codes.values()
            limit_s = SAVED_SETTLE_S if saved else SETTLE_S
            all_ended = len(codes) == len(self._processes())
            overdue = self._asked is not None and self._is_overdue()
            if all_ended or overdue or time.monotonic() - since > limit_s:
                return codes
            time.sleep(0.01)

    def _give_up_or_restart(self, cause: Cause) -> None:
        if self._pcontext is not None:
            self._pcontext.close(signal.SIGKILL)
        if sys.stdout.isatty():  # a killed worker's progress bar has hidden it
            print(_SHOW_CURSOR, end="", flush=True)
        most = self._worker_group.spec.max_restarts
        if self._asked is not None or not is_retried(cause):
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            number = most - self._remaining_restarts + 1
            print(
                f"distrain (rank {cause.rank}): {cause.text}\n"
                f"distrain: all workers start again (restart {number} of {most})",
                file=sys.stderr,
                flush=True,
            )
