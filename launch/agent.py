"""Torch elastic's agent of one machine, with this project's rules for restarts and for stops.

Torch elastic restarts the workers after any failure, ends the others by the very signal that a
scheduler preempts with, and has them ended by the signals that it gets itself. Here `Supervision`
decides instead.
"""

import os
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
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

from launch.failure import HANDED_ON, Cause
from launch.supervision import Supervision

_TORCHS_OWN = (signal.SIGHUP, signal.SIGQUIT, signal.SIGURG)
_TAKEN_OVER = "TORCHELASTIC_SIGNALS_TO_HANDLE"


class Agent(LocalElasticAgent):
    """Starts the workers, restarts them when one is lost, and hands signals on."""

    def __init__(self, spec: WorkerSpec, folder: Path, grace_s: float) -> None:
        """`folder` takes the workers' reports; after `grace_s` a stop is enforced."""
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(folder)), start_method="forkserver")
        self._supervision = Supervision(
            self._processes, self._kill, folder, grace_s=grace_s, max_restarts=spec.max_restarts
        )

    @property
    def cause(self) -> Cause | None:
        """Why the workers failed the last time; None if they never did."""
        return self._supervision.cause

    def _processes(self) -> Sequence[BaseProcess]:
        """The workers by local rank; on one machine that is their rank."""
        if not isinstance(self._pcontext, MultiprocessContext) or self._pcontext._pc is None:
            return []
        processes: Sequence[BaseProcess] = self._pcontext._pc.processes
        return processes

    def _kill(self) -> None:
        if self._pcontext is not None:
            self._pcontext.close(signal.SIGKILL)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self._supervision.prepare()
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
        self._supervision.signal_workers()
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        judged = self._supervision.have_failed()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed() and not judged:  # a worker has ended since we looked
            self._supervision.judge()
        if self._supervision.gives_up:
            self._remaining_restarts = 0
        if not result.is_failed() and self._supervision.are_done():
            # All have ended with 0. Torch elastic waits for return values, which ours don't have.
            done = dict.fromkeys(self._supervision.exit_codes())
            return RunResult(state=WorkerState.SUCCEEDED, return_values=done)
        return result
