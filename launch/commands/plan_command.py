"""`distrain plan`: what a job is made of, and what it will take here."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from data_pipeline.manifest import read_manifest
from distrain.config import Job
from distrain.parallel.split import plan_batches, useful_world_sizes
from launch.commands.job_checks import described_job, wanted_workers
from launch.commands.train_command import resolved
from launch.failure import Cause
from launch.local import run_workers
from launch.number_range import NumberRange
from launch.readable import duration

MOST_NAMED = 8
COLUMNS = 80
INDENT = " " * 10


def plan(
    path: Path,
    workers: NumberRange | None,
    overrides: Sequence[str],
    *,
    seconds: float,
    as_json: bool,
) -> Cause | None:
    """Tries a job's first steps for about so many seconds, and says what the run will take.

    Nothing is written; with `seconds` 0 nothing is tried either.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run.
    """
    job, batches = described_job("plan", path, overrides)
    size = wanted_workers(workers).most
    batches.check_world_size(size)
    measured: dict[str, Any] = {}
    if seconds > 0:
        with resolved(job) as file:
            out = file.with_name("measured.json")
            arguments = ["rehearsal", str(file), repr(seconds), str(out)]
            cause = run_workers(arguments, size, backend=job.parallel.backend)
            if cause is not None:
                return cause
            measured = json.loads(out.read_bytes())
    found = {**_counts(job), **measured}
    if measured:
        found["run_s"] = _run_seconds(found)
    print(json.dumps(found, indent=2) if as_json else "\n".join(plan_lines(job, found)))
    return None


def _counts(job: Job) -> dict[str, Any]:
    """What follows from the sizes alone."""
    manifest = read_manifest(Path(job.data.path))
    training = job.training
    rows = manifest.parts[job.data.train].rows
    batches = plan_batches(rows, training.global_batch, training.micro_batch, training.last_batch)
    last = batches.batch(batches.steps_per_epoch - 1)
    return {
        "rows": rows,
        "validation_rows": sum(manifest.parts[part].rows for part in job.data.validation_parts),
        "epochs": training.epochs,
        "steps_per_epoch": batches.steps_per_epoch,
        "steps": training.epochs * batches.steps_per_epoch,
        "global_batch": training.global_batch,
        "micro_batch": batches.micro_batch,
        "micro_batches": batches.num_micro_batches,
        "last_batch_samples": last.num_samples,
        "last_batch_micro_batches": last.num_micro_batches,
        "useful_workers": useful_world_sizes(batches.num_micro_batches),
    }


def _run_seconds(found: dict[str, Any]) -> float:
    """All epochs; early stopping may end it sooner."""
    evaluations_s = found["epochs"] * (found["evaluation_s"] or 0.0)
    return float(found["prepare_s"] + found["steps"] * found["step_s"] + evaluations_s)


def plan_lines(job: Job, found: dict[str, Any]) -> list[str]:
    """The plan for a person, in lines of 80 columns."""
    rows = f"{found['rows']:,} rows to train on"
    if found["validation_rows"]:
        rows += f", {found['validation_rows']:,} for validation"
    micro_batches = found["micro_batches"]
    lines = [
        f"data      {job.data.path}: {rows}",
        f"steps     {found['epochs']:,} epochs of {found['steps_per_epoch']:,}: {found['steps']:,}",
        f"batch     {found['global_batch']:,} samples = {micro_batches:,} micro-batches of "
        f"{found['micro_batch']:,}",
    ]
    if found["last_batch_samples"] != found["global_batch"]:
        lines.append(
            f"          an epoch's last: {found['last_batch_samples']:,} samples in "
            f"{found['last_batch_micro_batches']:,}"
        )
    lines += _worker_lines(found["useful_workers"], micro_batches)
    return lines + (_measured_lines(job, found) if "step_s" in found else [])


def _worker_lines(useful: list[int], micro_batches: int) -> list[str]:
    if micro_batches == 1:
        return ["workers   1: a batch has a single micro-batch; lower micro_batch for more"]
    few, even = useful[:MOST_NAMED], [size for size in useful if micro_batches % size == 0]
    more = f", ... {useful[-1]:,}" if len(useful) > len(few) else ""
    lines = [f"workers   {', '.join(f'{size:,}' for size in few)}{more} (others are no faster)"]
    if even != useful:
        named = ", ".join(f"{size:,}" for size in even[:MOST_NAMED])
        more = f", ... {even[-1]:,}" if len(even) > MOST_NAMED else ""
        lines.append(f"          all have the same to do with {named}{more}")
    return lines


def _measured_lines(job: Job, found: dict[str, Any]) -> list[str]:
    size = found["world_size"]
    workers = "1 worker" if size == 1 else f"{size} workers"
    sums = found["partial_sums"]
    lines = [
        f"model     {found['num_parameters']:,} parameters in {found['num_tensors']:,} tensors",
        f"memory    a worker: weights {_mb(found['model_bytes'])}, optimizer "
        f"{_mb(found['optimizer_bytes'])},",
        f"          gradients {sums} x {_mb(found['payload_bytes'])} (partial sums); at most "
        f"{_mb(found['peak_bytes'])} in all",
    ]
    lines += _exchange_lines(found)
    speed = found["global_batch"] / found["step_s"]
    lines += [
        f"step      {found['step_s']:.4f} s ({found['least_step_s']:.4f} to "
        f"{found['most_step_s']:.4f} over {found['steps_measured']} steps), {speed:,.0f} samples/s",
        f"          measured here, {workers} on {found['device']}",
    ]
    if found["evaluation_s"] is not None:
        lines.append(f"          an evaluation: {found['evaluation_s']:.2f} s")
    early = ", unless it stops early" if job.early_stopping.monitor else ""
    return [*lines, f"run       about {duration(found['run_s'])}{early}"]


def _exchange_lines(found: dict[str, Any]) -> list[str]:
    """What the busiest worker sends: measured with so many workers, and with others."""
    size = found["world_size"]
    here = {"workers": size} | {name: found[name] for name in ("sent_bytes", "unaligned_bytes")}
    shown = {one["workers"]: one for one in (*found["exchanges"], here) if one["workers"] > 1}
    if not shown:
        return []
    text = "a step, from the busiest worker: " + ", ".join(
        _exchange(shown[workers]) for workers in sorted(shown)
    )
    # A number stays with its unit.
    lines = wrap(text.replace(" MB", "\0MB").replace(" GB", "\0GB"), COLUMNS - len(INDENT))
    if any(one["unaligned_bytes"] for one in shown.values()):
        lines.append("extra: what shares of a batch that cut its tree unevenly add")
    lines = [INDENT + line.replace("\0", " ") for line in lines]
    return [lines[0].replace(INDENT, "exchange".ljust(len(INDENT)), 1), *lines[1:]]


def _exchange(one: dict[str, int]) -> str:
    sent = f"{one['workers']:,} workers {_mb(one['sent_bytes'])}"
    return f"{sent} ({_mb(one['unaligned_bytes'])} extra)" if one["unaligned_bytes"] else sent


def _mb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"
