"""Torch elastic's agent of one machine, with this project's rules for restarts and for stops.

Torch elastic restarts the workers after any failure, ends the others by the very signal that a
scheduler preempts with, and has them ended by the signals that it gets itself. Here `Supervision`
decides instead, and the number of workers may change from start to start.
"""

import errno
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import DistError
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from data_pipeline.errors import StorageError
from distrain.coordinator.generation import HAS_STEPPED, WORKERS
from distrain.coordinator.stops import BEGAN
from distrain.errors import UsageError
from launch.failure import HANDED_ON, STEPPED, Cause, tell
from launch.machines.nodes import Nodes
from launch.output.worker_output import WorkerOutput
from launch.places import Places
from launch.rendezvous import BoundRendezvous
from launch.resizing import Requests
from launch.supervision import ALL_AGAIN, Supervision

LOOK_EVERY_S = 0.1
"""How often requests and other machines are looked after; a worker's end is seen at once."""

MOST_STARTS = 1_000_000
"""Torch elastic's own limit of restarts, which must not count those that follow no failure."""

_AGAIN_S = 0.2
"""Where a machine was lost as all met, the others try again after so long."""

_TORCHS_OWN = (signal.SIGHUP, signal.SIGQUIT, signal.SIGURG)
_TAKEN_OVER = "TORCHELASTIC_SIGNALS_TO_HANDLE"


class Agent(LocalElasticAgent):
    """Starts the workers, restarts them when one is lost, and hands signals on."""

    def __init__(
        self,
        spec: WorkerSpec,
        folder: Path,
        places: Places,
        requests: Requests | None = None,
        nodes: Nodes | None = None,
        output: WorkerOutput | None = None,
        *,
        grace_s: float,
        max_restarts: int,
    ) -> None:
        """Looks after workers that `spec` describes, `launch.worker.work` with its arguments.

        Args:
            spec: Torch elastic's description; its number of workers is that of the first start.
            folder: Takes the workers' reports.
            places: The places for workers here.
            requests: For other numbers of workers.
            nodes: The link to other machines.
            output: Takes what the workers write.
            grace_s: After so long a stop is enforced.
            max_restarts: How often all workers are started again after one was lost.
        """
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(folder)), start_method="forkserver")
        self._folder, self._places, self._requests = folder, places, requests
        self._nodes, self._arguments, self._is_done = nodes, spec.args, False
        self._supervision = Supervision(
            self._processes,
            self._kill,
            folder,
            output,
            grace_s=grace_s,
            max_restarts=max_restarts,
            on_loss=self._give_way,
            on_hang=nodes.ask_for_stacks if nodes is not None else lambda: None,
        )

    @property
    def cause(self) -> Cause | None:
        """Why the workers failed the last time; None if they never did."""
        return self._supervision.cause

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to end."""
        return self._supervision.is_stopping

    def _processes(self) -> Mapping[int, BaseProcess]:
        """The workers of this machine by rank."""
        if not isinstance(self._pcontext, MultiprocessContext) or self._pcontext._pc is None:
            return {}
        ranks = [worker.global_rank for worker in self._worker_group.workers]
        return dict(zip(ranks, self._pcontext._pc.processes, strict=True))

    def _kill(self) -> None:
        if self._pcontext is not None:
            self._pcontext.close(signal.SIGKILL)

    def _give_way(self, cause: Cause, stepped: bool) -> str:
        """What is to become of a lost worker's place."""
        ranks = list(self._processes())
        if not cause.by_itself or cause.rank not in ranks:
            return ALL_AGAIN
        place = self._places.lose(ranks.index(cause.rank), stepped=stepped)
        if place is None:
            return ALL_AGAIN
        return (
            f"worker place {place} was lost twice with no step between, and is given up: "
            f"{_workers(len(self._places))} start again"
        )

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Meets the other machines, with as many workers as there are to be."""
        self._pcontext = None
        spec = worker_group.spec
        places = self._places.begin()
        spec.local_world_size = len(places)
        with self._supervision.waiting():
            told, start = self._meet(worker_group)
        # Of this torch elastic makes TORCHELASTIC_RESTART_COUNT.
        self._remaining_restarts = spec.max_restarts - start
        if self._requests is not None:
            told[WORKERS] = str(self._places.range)
        spec.args = (*self._arguments, places, told)

    def _meet(self, worker_group: WorkerGroup) -> tuple[dict[str, str], int]:
        """Meets them; variables for the workers, and which start this is, from 0."""
        spec, nodes = worker_group.spec, self._nodes
        if nodes is None:
            super()._rendezvous(worker_group)
            rendezvous = spec.rdzv_handler
            assert isinstance(rendezvous, BoundRendezvous)
            has_stepped = self._supervision.has_stepped
            return ({HAS_STEPPED: os.environ[BEGAN]} if has_stepped else {}), rendezvous.start
        failing_since: float | None = None
        while True:
            try:
                if self._supervision.has_stepped:
                    nodes.note_step()
                nodes.meet_again()
                spec.rdzv_handler = nodes.rendezvous
                super()._rendezvous(worker_group)
                return nodes.variables(), nodes.start
            except RendezvousConnectionError:
                continue  # the next one is waited for
            except DistError as error:  # a machine was lost just after all had met
                now = time.monotonic()
                failing_since = now if failing_since is None else failing_since
                if now - failing_since > nodes.join_s:
                    raise RendezvousTimeoutError(str(error)) from error
            time.sleep(_AGAIN_S)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        ranks = [worker.global_rank for worker in worker_group.workers]
        launch = None if self._nodes is None else self._nodes.launch
        self._supervision.prepare(ranks, launch)
        self._is_done = False
        # Torch elastic would take signals over here, also SIGHUP, which nohup ignores; the one that
        # it is left comes from nobody. A torch that does not ask takes four: they are taken back.
        os.environ[_TAKEN_OVER] = signal.SIGURG.name
        before = {number: signal.getsignal(number) for number in (*HANDED_ON, *_TORCHS_OWN)}
        try:
            started: dict[int, Any] = super()._start_workers(worker_group)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT):
                raise
            raise StorageError(
                "the workers can't be started: what they need in /dev/shm, or in "
                f"{tempfile.gettempdir()}, can't be written ({error.strerror})"
            ) from error
        finally:
            del os.environ[_TAKEN_OVER]
            for number, handler in before.items():
                signal.signal(number, handler)
        self._supervision.signal_workers()
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """How the workers stand.

        Torch elastic's own look would have the others end by SIGTERM where a worker has failed
        since ours: they could not note the run's end, and would be taken for its cause.
        """
        self._supervision.wait(LOOK_EVERY_S)
        has_failed = self._supervision.have_failed()
        if not has_failed:
            self._take_request()
            has_failed = self._has_been_left(worker_group)
        if self._supervision.gives_up:
            self._remaining_restarts = 0
        if has_failed:
            return RunResult(state=WorkerState.FAILED)
        if self._are_done():
            # All have ended with 0. Torch elastic waits for return values, which ours don't have.
            done = dict.fromkeys(self._supervision.exit_codes())
            return RunResult(state=WorkerState.SUCCEEDED, return_values=done)
        return RunResult(state=WorkerState.HEALTHY)

    def _take_request(self) -> None:
        """Has the workers save, where another number of them is asked for."""
        wanted = None if self._requests is None else self._requests.take()
        if wanted is None:
            return
        try:
            self._places.resize(wanted)
        except UsageError as error:  # whoever has written it has not looked
            tell(f"distrain: {error}\n", sys.stderr)
            return
        if wanted != len(self._places.taken):
            tell(f"distrain: {_workers(wanted)} are asked for\n", sys.stderr)
            self._supervision.resize()

    def _are_done(self) -> bool:
        """Whether the workers have ended, and well; of all machines, as any may have to go again.

        Torch elastic has a barrier for this, which nobody looks after and which ends after 300 s.
        """
        if not self._supervision.are_done() or self._nodes is None:
            return self._supervision.are_done()
        try:
            if not self._is_done:
                self._nodes.note_done()
                self._is_done = True
            return self._supervision.is_stopping or self._nodes.are_all_done()
        except RendezvousConnectionError:
            return self._supervision.is_stopping  # else the next look sees it as well

    def _exit_barrier(self) -> None:
        """There is nobody left to wait for."""

    def _has_been_left(self, worker_group: WorkerGroup) -> bool:
        """Has the workers save where a machine has come; whether one is lost, and all are dead."""
        if self._nodes is None or self._supervision.is_stopping:
            return False  # who saves to end has a time limit, and needs nobody
        machines = worker_group.group_world_size or 0
        try:
            if (self._folder / STEPPED).exists():
                self._nodes.note_step()
            if self._nodes.wants_stacks():
                self._supervision.leave_stacks()
                self._nodes.left_stacks()
            have_come = self._nodes.rendezvous.have_come()
        except RendezvousConnectionError:
            self._supervision.abandon(self._nodes.lost())
            return True
        if self._nodes.rendezvous.has_lost_any(machines):
            self._supervision.abandon(self._nodes.left_by_one())
            return True
        if have_come and not self._is_done:
            self._supervision.resize()
        return False


def _workers(number: int) -> str:
    return f"{number} worker{'s' * (number != 1)}"
