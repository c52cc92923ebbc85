"""Starts the workers of one machine on Horovod, over loopback alone.

Horovod's own parts of what `horovodrun --gloo` does: its rendezvous, its slots and its environment
(horovod/runner/gloo_run.py). That command would start each worker by a shell in a process between,
kill it 5 s after a signal, and write a rank before each of its lines; here workers are forked from
the fork server and looked after by `Supervision`, as those on torch elastic are. Horovod's server
listens on every address; this one on loopback.
"""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread

from horovod.runner.common.util.hosts import HostInfo, get_host_assignments
from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars
from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

from launch.failure import Cause
from launch.horovod.hosts import DEFAULTS
from launch.output.worker_output import WorkerOutput
from launch.supervision import Supervision
from launch.worker import work

_ADDRESS, _INTERFACE = "127.0.0.1", "lo"

_RENDEZVOUS_TURN_S = 0.02


class HorovodWorkers:
    """The workers of this machine, one start after the other."""

    def __init__(
        self,
        arguments: Sequence[object],
        workers: int,
        folder: Path,
        output: WorkerOutput | None = None,
        *,
        max_restarts: int,
        grace_s: float,
    ) -> None:
        """`arguments` are those of `launch.worker.work`; `folder` takes the workers' reports, and
        `output` what they write.
        """
        self._arguments, self._workers = arguments, workers
        self._started: list[BaseProcess] = []
        self._supervision = Supervision(
            lambda: dict(enumerate(self._started)),
            self._kill,
            folder,
            output,
            grace_s=grace_s,
            max_restarts=max_restarts,
        )

    def run(self, every_s: float) -> Cause | None:
        """Runs them to their end, looking after them so often; the cause where they have failed."""
        start = 0
        while not self._supervision.gives_up:
            with ExitStack() as stack:
                self._start(start, stack)
                while not self._supervision.have_failed():
                    if self._supervision.are_done():
                        return None
                    self._supervision.wait(every_s)
            start += 1
        return self._supervision.cause

    def _start(self, start: int, stack: ExitStack) -> None:
        slots = get_host_assignments([HostInfo("localhost", self._workers)], self._workers)
        server = RendezvousHTTPServer((_ADDRESS, 0), RendezvousHandler, verbose=0)
        stack.callback(server.server_close)
        server.init(slots)
        serve = partial(server.serve_forever, _RENDEZVOUS_TURN_S)
        Thread(target=serve, name="horovod-rendezvous", daemon=True).start()
        stack.callback(server.shutdown)
        stack.callback(self._kill)
        group = create_run_env_vars(_ADDRESS, [_INTERFACE], server.server_port)
        self._supervision.prepare(range(self._workers))
        self._started = []
        forked = multiprocessing.get_context("forkserver")
        for slot in slots:
            variables = {
                **{name: os.environ.get(name, value) for name, value in DEFAULTS.items()},
                **{name: str(value) for name, value in group.items()},
                **create_slot_env_vars(slot),
                "TORCHELASTIC_RESTART_COUNT": str(start),  # a later start is known by this name
            }
            process = forked.Process(target=_begin, args=(variables, *self._arguments))
            self._started.append(process)
            process.start()
        self._supervision.signal_workers()

    def _kill(self) -> None:
        for process in self._started:
            if process.pid is not None:
                process.kill()
        for process in self._started:
            if process.pid is not None:
                process.join()


def _begin(variables: Mapping[str, str], *arguments: object) -> None:
    """A worker's process, from its begin."""
    os.environ.update(variables)
    work(*arguments)  # type: ignore[arg-type]
