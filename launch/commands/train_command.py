"""`distrain train`: a job file, with overrides, on workers; how they failed, in its folder."""

import fcntl
import json
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.durable import write_whole
from data_pipeline.errors import StorageError
from distrain.config import Job
from distrain.coordinator.generation import mark_in
from distrain.coordinator.run_layout import FAILED, LOCK, RUNNING, STATUS, STOPPED
from distrain.coordinator.stops import StoppedError
from distrain.errors import ExitCode
from distrain.job_file import job_tables, job_toml
from launch.commands.job_checks import (
    described_job,
    fitting_workers,
    granted_restarts,
    wanted_workers,
)
from launch.failure import Cause, TerminatedError
from launch.horovod.host_list import Hosts
from launch.horovod.hosts import run_on_hosts
from launch.horovod.rules import check_on_hosts
from launch.local import run_workers
from launch.machines.node_range import NodeRange
from launch.number_range import NumberRange
from launch.output.logs import Logs


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of the command; None where one is not given.

    Attributes:
        job: The job file.
        overrides: `--section.field VALUE`, one word each.
        workers: With `nodes`, those of each machine.
        max_restarts: How often all workers are started again when one is lost.
        fresh: Whether a run that stands in the run's folder is moved aside.
        nodes: Other machines, which take part.
        shown: Whose output, as `--logs` says.
        log_dir: Takes the workers' output in place of the run's folder.
    """

    job: Path
    overrides: Sequence[str]
    workers: NumberRange | None
    max_restarts: int | None
    fresh: bool
    nodes: NodeRange | None
    shown: str | None
    log_dir: Path | None


def train(asked: Asked) -> Cause | None:
    """Checks the job as far as can be done without starting it, then runs it.

    Several workers are started again up to ten times when one is lost, unless said otherwise.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run; nothing was started.
    """
    job, plan = described_job("train", asked.job, asked.overrides)
    workers = fitting_workers(plan, wanted_workers(asked.workers), asked.nodes)
    run = Path(str(job.run.dir))
    with resolved(job) as file:
        before = mark_in(run)
        try:
            cause = run_workers(
                worker_command(str(file), fresh=asked.fresh),
                workers,
                max_restarts=granted_restarts(asked.max_restarts, workers, asked.nodes),
                grace_s=job.run.grace_s,
                backend=job.parallel.backend,
                run=run,
                nodes=asked.nodes,
                logs=Logs.of_run(run, asked.shown, asked.log_dir),
            )
        except KeyboardInterrupt:
            cause = _stopped_at_start("SIGINT")
        except TerminatedError as error:
            cause = _stopped_at_start(signal.Signals(error.number).name)
    return _noted(run, before, cause)


def train_on_hosts(asked: Asked, hosts: Hosts) -> Cause | None:
    """Checks the job, then has Horovod's workers run it on several hosts.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run; nothing was started.
        StorageError: nothing can be written where the run is to stand.
    """
    job = job_on_hosts(asked, hosts)
    run = Path(str(job.run.dir))
    with resolved(job) as file:
        before = mark_in(run)
        cause = run_on_hosts(
            worker_command(str(file), fresh=asked.fresh),
            hosts,
            run.parent,
            max_restarts=granted_restarts(asked.max_restarts),
            grace_s=job.run.grace_s,
            logs=Logs.of_run(run, asked.shown, asked.log_dir),
        )
    return _noted(run, before, cause)


def job_on_hosts(asked: Asked, hosts: Hosts) -> Job:
    """The job, which these hosts can run.

    Raises:
        UsageError, ConfigError, DataError: they can't.
    """
    job, plan = described_job("train", asked.job, asked.overrides)
    check_on_hosts(job.parallel.backend)
    plan.check_world_size(hosts.workers)
    return job


def worker_command(file: str, *, fresh: bool) -> Sequence[str]:
    """The arguments of `launch.worker` for a job."""
    return ["job", file, *(["--fresh"] if fresh else [])]


@contextmanager
def resolved(job: Job) -> Iterator[Path]:
    """The job as a file for the workers, gone at the block's end with all that lies beside it."""
    with tempfile.TemporaryDirectory(prefix="distrain-") as folder:
        file = Path(folder) / "job.toml"
        file.write_bytes(job_toml(job_tables(job)))
        yield file


def _stopped_at_start(reason: str) -> Cause:
    return Cause(0, ExitCode.STOPPED, str(StoppedError(reason)))


def _noted(run: Path, before: str, cause: Cause | None) -> Cause | None:
    """The cause, noted in the run's folder where this start has had it: the mark is another."""
    if cause is not None and mark_in(run) != before:
        note_failure(run, cause)
    return cause


def note_failure(folder: Path, cause: Cause) -> None:
    """Has the status name the cause: the worker that writes it was lost, or lost the others first.

    To be called where this start has had the folder; a run that holds it now is left alone.
    """
    with suppress(OSError, ValueError), (folder / LOCK).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _correct_status(folder / STATUS, cause)


def _correct_status(path: Path, cause: Cause) -> None:
    status = json.loads(path.read_bytes())
    if status.get("state") in (RUNNING, FAILED):
        state = STOPPED if cause.exit_code == ExitCode.STOPPED else FAILED
        status |= {"state": state, "reason": cause.text, "exit_code": int(cause.exit_code)}
        try:
            write_whole(path, json.dumps(status, indent=2).encode() + b"\n")
        except StorageError as error:
            raise StorageError(f"{cause.text}\n(and {error})") from error
