"""Starts the workers of one machine, on torch elastic or on Horovod, over loopback alone."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from distrain.config import Backend
from distrain.coordinator.stops import BEGAN, answer_to, began_now
from distrain.errors import ConfigError, ExitCode, UsageError
from launch import fork_server
from launch.failure import REPORTS, Cause, TerminatedError
from launch.worker import Alone, failure_of, work

MONITOR_EVERY_S = 0.1
"""How often the agent looks after its workers."""

GRACE_S = 30.0
"""Time that workers have to end after a signal, unless the job says otherwise."""


def run_workers(
    arguments: Sequence[str],
    workers: int,
    *,
    max_restarts: int | None = None,
    grace_s: float = GRACE_S,
    backend: Backend = "torch",
) -> Cause | None:
    """Runs `launch.worker` with these arguments as a group of workers; the cause of a failure.

    One worker runs in this very process, so that a debugger has a terminal; nobody is left to start
    it again if it dies, so with `max_restarts` it is a process of its own. When one of several
    fails, all end. Signals are handed on to all of them.

    Args:
        arguments: Of `launch.worker`.
        workers: How many.
        max_restarts: How often all workers are started again when one is lost; None for never.
        grace_s: Workers that have been asked to stop are killed after so long.
        backend: What carries their exchanges.

    Raises:
        ConfigError: that is Horovod, and it is not installed.
        UsageError: a launcher's workers would start workers of their own.
    """
    if backend == "horovod" and find_spec("horovod") is None:
        raise ConfigError(
            'parallel.backend is "horovod", and Horovod is not installed: install it by '
            '`make horovod`, or set parallel.backend = "torch"'
        )
    os.environ[BEGAN] = began_now()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _terminate)
    if workers == 1 and not max_restarts:
        answer_to(Alone())
        report = failure_of(arguments, rank=0)
        return None if report is None else Cause(0, report.exit_code, report.text)
    if os.environ.get("HOROVOD_SIZE", "1") != "1":
        raise UsageError(
            f"HOROVOD_SIZE is {os.environ['HOROVOD_SIZE']}: each of horovodrun's workers would "
            "start workers of its own; leave --workers and --max-restarts out, or horovodrun"
        )
    with tempfile.TemporaryDirectory(prefix="distrain-", ignore_cleanup_errors=True) as folder:
        os.environ[REPORTS] = folder
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        run_group = _run_on_horovod if backend == "horovod" else _run_on_torch_elastic
        return run_group(arguments, workers, max_restarts or 0, grace_s, Path(folder))


def _run_on_horovod(
    arguments: Sequence[str], workers: int, max_restarts: int, grace_s: float, folder: Path
) -> Cause | None:
    fork_server.start()
    # Imported here: most have no Horovod.
    from launch.horovod_workers import HorovodWorkers  # noqa: PLC0415

    group = HorovodWorkers(
        (list(arguments), os.getpid(), list(sys.path), fork_server.settings()),
        workers,
        folder,
        max_restarts=max_restarts,
        grace_s=grace_s,
    )
    return group.run(MONITOR_EVERY_S)


def _run_on_torch_elastic(
    arguments: Sequence[str], workers: int, max_restarts: int, grace_s: float, folder: Path
) -> Cause | None:
    # Between the workers of one machine nothing has to leave it.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    fork_server.start()
    # Imported here: torch takes 1 s, and one worker or a job that is refused has no need of it.
    from torch.distributed.elastic.agent.server.api import WorkerSpec  # noqa: PLC0415

    from launch import loopback  # noqa: PLC0415
    from launch.agent import Agent  # noqa: PLC0415

    # The cause is shown once, by us; the agent would log it, and what follows from it, again.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    rendezvous = loopback.rendezvous(folder / "rendezvous")
    spec = WorkerSpec(
        role="default",
        local_world_size=workers,
        entrypoint=work,
        args=(list(arguments), os.getpid(), list(sys.path), fork_server.settings()),
        rdzv_handler=rendezvous,
        max_restarts=max_restarts,
        monitor_interval=MONITOR_EVERY_S,
        local_addr=loopback.ADDRESS,
    )
    agent = Agent(spec, folder, grace_s)
    try:
        result = agent.run()
    finally:
        rendezvous.shutdown()
    if result is not None and not result.is_failed():
        return None
    return agent.cause or Cause(0, ExitCode.WORKER_LOST, "the workers failed without a word")


def _terminate(number: int, _frame: object) -> None:
    raise TerminatedError(number)
