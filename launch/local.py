"""Starts the workers of one machine on torch elastic, over loopback alone."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distrain.errors import ExitCode
from launch.failure import REPORTS, Cause, TerminatedError, first_cause, read_reports
from launch.worker import failure_of

MONITOR_EVERY_S = 0.1
"""How often the agent looks after its workers."""


def run_workers(arguments: Sequence[str], workers: int) -> Cause | None:
    """Runs `python -m launch.worker ARGUMENTS` as a group of workers; the cause of a failure.

    One worker runs in this very process, so that a debugger has a terminal. When one of several
    fails, all end. Ctrl-C and SIGTERM end all of them.
    """
    if workers == 1:
        signal.signal(signal.SIGTERM, _terminate)
        report = failure_of(arguments, rank=0)
        return None if report is None else Cause(0, report.exit_code, report.text)
    with tempfile.TemporaryDirectory(prefix="distrain-") as folder:
        return _run_group(arguments, workers, Path(folder))


def _run_group(arguments: Sequence[str], workers: int, folder: Path) -> Cause | None:
    # Imported here: torch takes 2 s, and one worker or a job that is refused has no need of it.
    from torch.distributed.elastic.multiprocessing import (  # noqa: PLC0415
        DefaultLogsSpecs,
        SignalException,
    )
    from torch.distributed.elastic.multiprocessing.errors import (  # noqa: PLC0415
        ChildFailedError,
    )
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    from launch import loopback  # noqa: PLC0415

    # The cause is shown once, by us; the agent would log it, and what follows from it, again.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[REPORTS] = str(folder)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Between the workers of one machine nothing has to leave it.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id="distrain",
        rdzv_backend=loopback.NAME,
        rdzv_endpoint=str(folder / "rendezvous"),
        local_addr=loopback.ADDRESS,
        max_restarts=0,
        monitor_interval=MONITOR_EVERY_S,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder)),
    )
    try:
        # -P: a file of the user's called launch.py must not be taken for this package.
        elastic_launch(config, sys.executable)("-P", "-m", "launch.worker", *arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return first_cause(read_reports(folder), codes)
    except SignalException as error:
        return _stopped_by(error.sigval)
    except KeyboardInterrupt:
        return _stopped_by(signal.SIGINT)
    return None


def _terminate(number: int, _frame: object) -> None:
    raise TerminatedError(number)


def _stopped_by(number: signal.Signals) -> Cause:
    if number == signal.SIGINT:
        return Cause(0, ExitCode.CTRL_C, "interrupted")
    return Cause(0, 128 + number, f"stopped by {number.name}")
