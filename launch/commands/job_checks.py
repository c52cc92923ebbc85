"""What of a job can be checked before workers are started, all without importing torch."""

import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest import read_manifest
from distrain.config import Job
from distrain.job_file import override, read_job, with_folder
from distrain.parallel.split import BatchPlan, plan_batches
from launch.failure import tell
from launch.machines.node_range import NodeRange
from launch.number_range import NumberRange

MOST_RESTARTS = 10
"""How often several workers are started again after one is lost, unless the command says."""


def described_job(command: str, path: Path, overrides: Sequence[str]) -> tuple[Job, BatchPlan]:
    """A job with its overrides, and its batches; `command` is who asks.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run.
    """
    job = with_folder(override(read_job(path), overrides, prog=f"distrain {command} {path}"), path)
    return job, _batches(job)


def wanted_workers(given: NumberRange | None) -> NumberRange:
    """The numbers of workers: as given, else one a GPU, else 1."""
    if given is not None:
        return given
    import torch  # noqa: PLC0415 - only needed to count GPUs

    count = max(1, torch.cuda.device_count())
    return NumberRange(count, count)


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


def granted_restarts(
    given: int | None, workers: NumberRange | None = None, nodes: NodeRange | None = None
) -> int:
    """How often all workers start again: as given, else often; never where one is all there is.

    Without `workers` there may be several.
    """
    if given is not None:
        return given
    return MOST_RESTARTS if workers is None or workers.most > 1 or nodes is not None else 0


def _batches(job: Job) -> BatchPlan:
    """Holds a job against its data.

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
