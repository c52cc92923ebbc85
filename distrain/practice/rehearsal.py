"""A job's first steps, tried without a run: what a step takes here, in time and in memory."""

import dataclasses
import resource
import statistics
import time
from dataclasses import dataclass

import torch

from data_pipeline.on_device import OnDevice
from distrain.assembly import Assembly
from distrain.config import Job
from distrain.coordinator.stops import StopAskedError
from distrain.parallel.optimizer_state import optimizer_tensors
from distrain.parallel.split import useful_world_sizes
from distrain.parallel.traffic import Group
from distrain.parallel.world import World
from distrain.run_job import job_batches, job_datasets, job_trainer

WARM_UP_STEPS = 3
MOST_STEPS = 1000
MOST_EXCHANGES = 8


@dataclass(frozen=True)
class Exchange:
    """What the busiest of so many workers sends in a step, and how much of it as `Rehearsal`."""

    workers: int
    sent_bytes: int
    unaligned_bytes: int


@dataclass(frozen=True)
class Rehearsal:
    """What was measured, on rank 0.

    Attributes:
        world_size: The number of workers.
        device: cpu, or the GPU's name.
        num_parameters: Elements of all trainable parameters, in `num_tensors` tensors.
        model_bytes: Weights and buffers.
        payload_bytes: What travels for one partial sum: gradients, running statistics, ledger.
        partial_sums: How many of them a worker kept at most.
        optimizer_bytes: The optimizer's state, after the steps.
        sent_bytes: What the busiest worker sends in a step.
        unaligned_bytes: Those of them that are there because ranges of micro-batches do not align
            with the tree.
        exchanges: The same for other numbers of workers on one host, those of most use.
        peak_bytes: The most memory that the process has had: on the device where that is a GPU.
        steps_measured: Over so many; the seconds of one: median, least, most.
        evaluation_s: Of the whole validation set, in part extrapolated; None without one.
        prepare_s: From the job to the first step.
    """

    world_size: int
    device: str
    num_parameters: int
    num_tensors: int
    model_bytes: int
    payload_bytes: int
    partial_sums: int
    optimizer_bytes: int
    sent_bytes: int
    unaligned_bytes: int
    exchanges: tuple[Exchange, ...]
    peak_bytes: int
    steps_measured: int
    step_s: float
    least_step_s: float
    most_step_s: float
    evaluation_s: float | None
    prepare_s: float


def rehearse(job: Job, seconds: float) -> Rehearsal | None:
    """Does some of a job's steps, for about so many seconds; called on every worker.

    The result is None on every rank but 0. Nothing is written.

    Raises:
        What a run of the job raises.
    """
    began = time.monotonic()
    job = dataclasses.replace(job, run=dataclasses.replace(job.run, dir=None, max_time_s=None))
    train, validation = job_datasets(job)
    trainer = job_trainer(job, train)
    parts = trainer.assemble(train, validation, **{**job_batches(job), "verify": False})
    world = parts.world
    num_steps = min(MOST_STEPS, parts.plan.steps_per_epoch * job.training.epochs)
    trainer.model.train()
    with parts.batches(range(num_steps), job.data.prefetch) as batches:
        prepared = time.monotonic()
        warm = [_step(parts, batches, number) for number in range(min(WARM_UP_STEPS, num_steps))]
        wanted = _agreed(max(1, int(seconds / max(warm[-1], 1e-6))), world)
        numbers = range(len(warm), min(num_steps, len(warm) + wanted))
        timed = [_step(parts, batches, number) for number in numbers] or warm
    evaluation_s = _evaluation_s(parts, seconds)
    if world.rank != 0:
        return None
    sent = parts.step.sent_bytes(parts.plan.num_micro_batches)
    tensors, _ = optimizer_tensors(parts.step.optimizer)
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    return Rehearsal(
        world_size=world.size,
        device=_device_name(world.device),
        num_parameters=sum(p.numel() for p in trainable),
        num_tensors=len(trainable),
        model_bytes=sum(tensor.nbytes for tensor in trainer.model.state_dict().values()),
        payload_bytes=parts.step.payload_bytes,
        partial_sums=parts.step.partial_sums,
        optimizer_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        sent_bytes=sent.num_bytes,
        unaligned_bytes=sent.unaligned,
        exchanges=_exchanges(parts, gathers_at_once=_gathers_at_once(job, world)),
        peak_bytes=_peak_bytes(world.device),
        steps_measured=len(timed),
        step_s=statistics.median(timed),
        least_step_s=min(timed),
        most_step_s=max(timed),
        evaluation_s=evaluation_s,
        prepare_s=prepared - began,
    )


def _exchanges(parts: Assembly, *, gathers_at_once: bool) -> tuple[Exchange, ...]:
    """By arithmetic: nothing is tried for it."""
    leaves = parts.plan.num_micro_batches
    found = []
    for size in useful_world_sizes(leaves)[1 : MOST_EXCHANGES + 1]:
        sent = parts.step.sent_bytes(leaves, Group(size, size, at_once=gathers_at_once))
        found.append(Exchange(size, sent.num_bytes, sent.unaligned))
    return tuple(found)


def _gathers_at_once(job: Job, world: World) -> bool:
    """As the job's workers would; one that is alone says nothing of the others."""
    if world.size > 1:
        return world.communicator.gathers_at_once
    return job.parallel.backend == "horovod" or world.device.type == "cuda"


def _step(parts: Assembly, batches: OnDevice, number: int) -> float:
    """Seconds that a step takes, the wait for its samples included."""
    began = time.monotonic()
    columns = next(batches).columns
    parts.step(parts.plan.batch(number), columns)
    return time.monotonic() - began


def _agreed(number: int, world: World) -> int:
    """The least number that any worker names."""
    mine = torch.tensor([number], device=world.device)
    return int(world.communicator.all_gather(mine).min().item())


def _evaluation_s(parts: Assembly, seconds: float) -> float | None:
    """Seconds for the whole validation set; after so many it is left, and extrapolated."""
    if parts.evaluate is None:
        return None
    began = time.monotonic()
    share = 1.0
    try:
        parts.evaluate(lambda: int(time.monotonic() - began > seconds))
    except StopAskedError as left:
        share = left.share_done
    return (time.monotonic() - began) / share


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
