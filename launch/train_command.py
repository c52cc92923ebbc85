"""`distrain train`: a job file, with overrides, on the workers of this machine."""

import fcntl
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError, StorageError
from data_pipeline.manifest import read_manifest
from distrain.config import Job
from distrain.coordinator.generation import mark_in
from distrain.coordinator.run_layout import FAILED, LOCK, RUNNING, STATUS, STOPPED
from distrain.coordinator.stops import StoppedError
from distrain.errors import ExitCode
from distrain.job_file import job_tables, job_toml, override, read_job, with_folder
from distrain.parallel.split import BatchPlan, plan_batches
from launch.failure import Cause, TerminatedError, tell
from launch.local import run_workers
from launch.node_range import NodeRange
from launch.number_range import NumberRange

MOST_RESTARTS = 10
"""How often several workers are started again after one is lost, unless the command says."""


def train(
    path: Path,
    workers: NumberRange | None,
    overrides: Sequence[str],
    *,
    fresh: bool,
    max_restarts: int | None = None,
    nodes: NodeRange | None = None,
) -> Cause | None:
    """Checks the job as far as can be done without starting it, then runs it.

    Several workers are started again up to ten times when one is lost, unless said otherwise.
    With `nodes`, `workers` are those of each machine.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run; nothing was started.
    """
    job, plan, wanted = planned_job("train", path, workers, overrides)
    size = fitting_workers(plan, wanted, nodes)
    with resolved(job) as file:
        before = mark_in(Path(str(job.run.dir)))
        if max_restarts is None and (size.most > 1 or nodes is not None):
            max_restarts = MOST_RESTARTS
        try:
            cause = run_workers(
                ["job", str(file), *(["--fresh"] if fresh else [])],
                size,
                max_restarts=max_restarts,
                grace_s=job.run.grace_s,
                backend=job.parallel.backend,
                run=Path(str(job.run.dir)),
                nodes=nodes,
            )
        except KeyboardInterrupt:
            cause = _stopped_at_start("SIGINT")
        except TerminatedError as error:
            cause = _stopped_at_start(signal.Signals(error.number).name)
    if cause is not None and mark_in(Path(str(job.run.dir))) != before:
        note_failure(Path(str(job.run.dir)), cause)
    return cause


def checked_job(
    command: str, path: Path, workers: NumberRange | None, overrides: Sequence[str]
) -> tuple[Job, int]:
    """A job with its overrides, and the number of workers, as far as can be checked at once.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run.
    """
    job, plan, size = planned_job(command, path, workers, overrides)
    plan.check_world_size(size.most)
    return job, size.most


def planned_job(
    command: str, path: Path, workers: NumberRange | None, overrides: Sequence[str]
) -> tuple[Job, BatchPlan, NumberRange]:
    """A job with its overrides, its batches, and the numbers of workers, not held against them.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run.
    """
    job = with_folder(override(read_job(path), overrides, prog=f"distrain {command} {path}"), path)
    return job, check_job(job), check_workers(workers)


def fitting_workers(plan: BatchPlan, workers: NumberRange, nodes: NodeRange | None) -> NumberRange:
    """As many as there are micro-batches for; a machine's share of them where there are several.

    Raises:
        ConfigError: even the fewest are too many.
    """
    plan.check_world_size(workers.least * (1 if nodes is None else nodes.least))
    if nodes is not None:
        plan.check_world_size(workers.most * nodes.most)
        return workers
    most = min(workers.most, plan.num_micro_batches)
    if most < workers.most:
        tell(
            f"distrain: of {workers} workers {most} are started, one for each micro-batch\n",
            sys.stderr,
        )
    return NumberRange(workers.least, most)


@contextmanager
def resolved(job: Job) -> Iterator[Path]:
    """The job as a file for the workers, gone at the block's end with all that lies beside it."""
    with tempfile.TemporaryDirectory(prefix="distrain-") as folder:
        file = Path(folder) / "job.toml"
        file.write_bytes(job_toml(job_tables(job)))
        yield file


def _stopped_at_start(reason: str) -> Cause:
    return Cause(0, ExitCode.STOPPED, str(StoppedError(reason)))


def check_workers(workers: NumberRange | None) -> NumberRange:
    """The numbers of workers: as given, else one a GPU, else 1."""
    if workers is None:
        import torch  # noqa: PLC0415 - only needed to count GPUs

        count = max(1, torch.cuda.device_count())
        return NumberRange(count, count)
    return workers


def check_job(job: Job) -> BatchPlan:
    """Holds a job against its data; its batches.

    Raises:
        DataError: the data set, a part or a column is missing.
        ConfigError: the sizes don't fit each other.
    """
    root = Path(job.data.path)
    manifest = read_manifest(root)
    for part in (job.data.train, *job.data.validation_parts):
        if part not in manifest.parts:
            raise DataError(f"{root} has no part {part!r}; its parts are {sorted(manifest.parts)}")
    names = [column.name for column in manifest.columns]
    for column in (job.data.inputs, job.data.target):
        if column not in names:
            raise DataError(f"{root} has no column {column!r}; it has {names}")
    training = job.training
    return plan_batches(
        manifest.parts[job.data.train].rows,
        training.global_batch,
        training.micro_batch,
        training.last_batch,
    )


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
