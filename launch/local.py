"""Starts the workers of this machine, on torch elastic or on Horovod.

Workers of one machine alone meet over loopback; those of several where their launchers do.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from distrain.config import Backend
from distrain.coordinator.stops import BEGAN, answer_to, began_now
from distrain.errors import ConfigError, UsageError
from launch import fork_server
from launch.failure import REPORTS, Cause, TerminatedError
from launch.node_range import NodeRange
from launch.number_range import NumberRange
from launch.worker import Alone, failure_of

HOROVOD_EVERY_S = 0.1
"""How often its workers are looked after, unless one ends."""

GRACE_S = 30.0
"""Time that workers have to end after a signal, unless the job says otherwise."""

_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


def run_workers(
    arguments: Sequence[str],
    workers: int | NumberRange,
    *,
    max_restarts: int | None = None,
    grace_s: float = GRACE_S,
    backend: Backend = "torch",
    run: Path | None = None,
    nodes: NodeRange | None = None,
) -> Cause | None:
    """Runs `launch.worker` with these arguments as a group of workers; the cause of a failure.

    One worker runs in this very process, so that a debugger has a terminal; nobody is left to start
    it again if it dies, so with `max_restarts` it is a process of its own. When one of several
    fails, all end. Signals are handed on to all of them.

    Where there may be fewer of them than there are, one that is lost again and again is given up.

    Args:
        arguments: Of `launch.worker`.
        workers: How many; the most are started.
        max_restarts: How often all workers are started again when one is lost; None for never.
        grace_s: Workers that have been asked to stop are killed after so long.
        backend: What carries their exchanges.
        run: The run's folder, in which requests for other numbers of workers come.
        nodes: Other machines, which take part.

    Raises:
        ConfigError: that is Horovod, and it is not installed.
        UsageError: a launcher's workers would start workers of their own.
    """
    if isinstance(workers, int):
        workers = NumberRange(workers, workers)
    if backend == "horovod":
        _check_horovod(is_fixed=not workers.is_elastic and nodes is None)
    os.environ[BEGAN] = began_now()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _terminate)
    if workers.most == 1 and not max_restarts and nodes is None:
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
        if backend == "horovod":
            return _run_on_horovod(
                arguments, workers.most, max_restarts or 0, grace_s, Path(folder)
            )
        if nodes is None:
            # Between the workers of one machine nothing has to leave it.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        fork_server.start()
        # Imported here: torch takes 1 s, and one worker or a refused job has no need of it.
        with _without_stacks_in_cpp():
            from launch.elastic import ElasticGroup  # noqa: PLC0415

        group = ElasticGroup(arguments, workers, max_restarts or 0, grace_s, Path(folder), run)
        return group.run_alone() if nodes is None else group.run_with_others(nodes)


@contextmanager
def _without_stacks_in_cpp() -> Iterator[None]:
    """Torch reads it as it is imported: what it warns of in this process is told by us in a line.

    The workers' torch warns as ever.
    """
    given = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "ERROR")
    try:
        yield
    finally:
        if given is None:
            del os.environ[_LOG_LEVEL]


def _check_horovod(*, is_fixed: bool) -> None:
    """Refuses it where it is not there, or would have to take more or fewer workers."""
    if find_spec("horovod") is None:
        raise ConfigError(
            'parallel.backend is "horovod", and Horovod is not installed: install it by '
            '`make horovod`, or set parallel.backend = "torch"'
        )
    if not is_fixed:
        raise ConfigError(
            'parallel.backend is "horovod", whose workers are of one machine and of a fixed '
            "number here: give --workers one number and leave --nodes out, or set "
            'parallel.backend = "torch"'
        )


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
    return group.run(HOROVOD_EVERY_S)


def _terminate(number: int, _frame: object) -> None:
    raise TerminatedError(number)
