"""Starts the workers of this machine, on torch elastic or on Horovod.

Workers of one machine alone meet over loopback; those of several where their launchers do.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from distrain.config import Backend
from distrain.coordinator.stops import BEGAN, answer_to, began_now, heeded
from distrain.errors import UsageError
from launch import fork_server
from launch.failure import REPORTS, Cause, TerminatedError
from launch.horovod.rules import check_on_one_machine
from launch.machines.node_range import NodeRange
from launch.number_range import NumberRange
from launch.output.logs import Logs
from launch.output.output_pipes import SHOWN
from launch.worker import Alone, failure_of

if TYPE_CHECKING:
    from launch.output.worker_output import WorkerOutput

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
    logs: Logs | None = None,
) -> Cause | None:
    """Runs `launch.worker` with these arguments as a group of workers; the cause of a failure.

    One worker runs in this very process, so that a debugger has a terminal; nobody is left to start
    it again if it dies, so with `max_restarts` it is a process of its own, and so it is where its
    output is asked for. When one of several fails, all end. Signals are handed on to all of them.

    Where there may be fewer of them than there are, one that is lost again and again is given up.

    Args:
        arguments: Of `launch.worker`.
        workers: How many; the most are started.
        max_restarts: How often all workers are started again when one is lost; None for never.
        grace_s: Workers that have been asked to stop are killed after so long.
        backend: What carries their exchanges.
        run: The run's folder, in which requests for other numbers of workers come.
        nodes: Other machines, which take part.
        logs: What becomes of their output; without, it goes where this process's does.

    Raises:
        ConfigError: that is Horovod, and it is not installed.
        UsageError: a launcher's workers would start workers of their own.
    """
    if isinstance(workers, int):
        workers = NumberRange(workers, workers)
    if backend == "horovod":
        check_on_one_machine(is_fixed=not workers.is_elastic and nodes is None)
    os.environ[BEGAN] = began_now()
    for number in heeded((signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)):
        signal.signal(number, _terminate)
    if works_alone(workers, max_restarts, nodes, logs):
        answer_to(Alone())
        report = failure_of(arguments, rank=0)
        return None if report is None else Cause(0, report.exit_code, report.text)
    refuse_as_worker(os.environ)
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="distrain-", ignore_cleanup_errors=True)
        )
        os.environ[REPORTS] = folder
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        output = None if logs is None else stack.enter_context(_taken(logs, Path(folder)))
        if backend == "horovod":
            return _run_on_horovod(
                arguments, workers.most, max_restarts or 0, grace_s, Path(folder), output
            )
        if nodes is None:
            # Between the workers of one machine nothing has to leave it.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        fork_server.start()
        # Imported here: torch takes 1 s, and one worker or a refused job has no need of it.
        with _without_stacks_in_cpp():
            from launch.elastic import ElasticGroup  # noqa: PLC0415

        restarts = max_restarts or 0
        group = ElasticGroup(arguments, workers, restarts, grace_s, Path(folder), run, output)
        return group.run_alone() if nodes is None else group.run_with_others(nodes)


def refuse_as_worker(environment: Mapping[str, str]) -> None:
    """Refuses to start workers in what is one of several workers: those would be N trainings.

    Raises:
        UsageError: it is one of horovodrun's, torchrun's or another launcher's.
    """
    told = {"HOROVOD_SIZE": "horovodrun"}
    if "RANK" in environment:
        told["WORLD_SIZE"] = "torchrun" if "TORCHELASTIC_RUN_ID" in environment else "its launcher"
    for name, launcher in told.items():
        size = environment.get(name, "1")
        if size != "1":
            raise UsageError(
                f"{name} is {size}: each of {launcher}'s workers would start workers of its own; "
                f"leave --workers and --max-restarts out, start it without {launcher}, or unset "
                f"{name}"
            )


def works_alone(
    workers: NumberRange, max_restarts: int | None, nodes: NodeRange | None, logs: Logs | None
) -> bool:
    """Whether one worker is all there is to start: it works in its launcher's own process."""
    is_asked_for = logs is not None and logs.is_asked_for
    return workers.most == 1 and not max_restarts and nodes is None and not is_asked_for


@contextmanager
def _taken(logs: Logs, folder: Path) -> "Iterator[WorkerOutput]":
    """The workers' output, to its end."""
    os.environ[SHOWN] = logs.shown
    # Imported here: a dry run and one worker have no need of it, nor of rich.
    from launch.output.worker_output import WorkerOutput  # noqa: PLC0415

    output = WorkerOutput(folder, logs.shown, logs.place())
    try:
        yield output
    finally:
        output.end()
        del os.environ[SHOWN]


@contextmanager
def _without_stacks_in_cpp() -> Iterator[None]:
    """Torch reads it as it is imported: what it warns of in this process is told by us in a line.

    The workers' torch warns as ever.
    """
    given = os.environ.get(_LOG_LEVEL)
    os.environ.setdefault(_LOG_LEVEL, "FATAL")
    try:
        yield
    finally:
        if given is None:
            del os.environ[_LOG_LEVEL]


def _run_on_horovod(
    arguments: Sequence[str],
    workers: int,
    max_restarts: int,
    grace_s: float,
    folder: Path,
    output: "WorkerOutput | None",
) -> Cause | None:
    fork_server.start()
    # Imported here: most have no Horovod.
    from launch.horovod.workers import HorovodWorkers  # noqa: PLC0415

    group = HorovodWorkers(
        (list(arguments), os.getpid(), list(sys.path), fork_server.settings()),
        workers,
        folder,
        output,
        max_restarts=max_restarts,
        grace_s=grace_s,
    )
    return group.run(HOROVOD_EVERY_S)


def _terminate(number: int, _frame: object) -> None:
    raise TerminatedError(number)
