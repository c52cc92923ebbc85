"""What does a step cost beside DistributedDataParallel's, from 10,000 to 10,000,000 parameters?

An MLP of about so many parameters, one micro-batch a worker, AdamW, no clipping, everybody in one
process group, on samples that lie in memory:

    distrain           TrainingStep: ledger, finite check and guard included
    distrain_sharded   the same, each worker updating its share
    ddp                DistributedDataParallel, gradient_as_bucket_view, fused AdamW
    zero               DistributedDataParallel with ZeroRedundancyOptimizer

Rounds are interleaved, each beginning with another variant; a round is some steps. Reported are
milliseconds a step and, by round, ratios: ours to DDP's, and sharded to unsharded.

    python -m benchmarks.step_sizes [--workers 2] [--rounds 9] [--sizes 10000,10000000] [--out FILE]
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from benchmarks.conditions import conditions, ratios, spread
from distrain.coordinator.metrics import MetricSet
from distrain.learn.schedules import Constant
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from distrain.parallel.split import GlobalBatch
from distrain.parallel.summing import SumOptions
from distrain.parallel.world import World
from distrain.step import TrainingStep
from distrain.step_settings import StepSettings
from distrain.update import Clip
from launch.local import run_workers

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
FEATURES, CLASSES, DEPTH = 32, 10, 4
PER_WORKER = 32
ROUND_S = 0.6
"""Steps of a round take about so long."""

Step = Callable[[], None]
Variant = Callable[[int, World], Step]


def build_net(num_parameters: int) -> nn.Module:
    """An MLP with hidden layers of one width, of about so many parameters."""
    width = 8
    while count(width) < num_parameters:
        width += 8
    layers: list[nn.Module] = [nn.Linear(FEATURES, width), nn.ReLU()]
    for _ in range(DEPTH):
        layers += [nn.Linear(width, width), nn.ReLU()]
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def count(width: int) -> int:
    return width * (FEATURES + CLASSES + DEPTH * width)


def samples(world: World) -> Columns:
    generator = torch.Generator().manual_seed(world.rank)
    return {
        "x": torch.randn(PER_WORKER, FEATURES, generator=generator),
        "y": torch.randint(0, CLASSES, (PER_WORKER,), generator=generator),
    }


def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = model(columns["x"])
    loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
    return loss, len(outputs), outputs


def by_distrain(num_parameters: int, world: World, *, sharded: bool = False) -> Step:
    model = build_net(num_parameters)
    batch = PER_WORKER * world.size
    step = TrainingStep(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True),
        run,
        MetricSet((), 0),
        world,
        StepSettings(
            target="y",
            seed=0,
            schedule=Constant(),
            clip=Clip(),
            sums=SumOptions(shard_optimizer=sharded),
        ),
        global_batch=batch,
        rows_at=lambda _epoch, _start, _stop: torch.zeros(0, dtype=torch.int64).numpy(),
    )
    columns = samples(world)
    number = 0

    def do() -> None:
        nonlocal number
        step(GlobalBatch(number, 0, number * batch, (number + 1) * batch, PER_WORKER), columns)
        number += 1

    return do


def by_sharded(num_parameters: int, world: World) -> Step:
    return by_distrain(num_parameters, world, sharded=True)


def by_ddp(num_parameters: int, world: World, *, zero: bool = False) -> Step:
    model = DistributedDataParallel(build_net(num_parameters), gradient_as_bucket_view=True)
    optimizer: torch.optim.Optimizer
    if zero:
        optimizer = ZeroRedundancyOptimizer(
            model.parameters(), torch.optim.AdamW, lr=1e-3, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    columns = samples(world)

    def do() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(columns["x"]), columns["y"])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return do


def by_zero(num_parameters: int, world: World) -> Step:
    return by_ddp(num_parameters, world, zero=True)


VARIANTS: Mapping[str, Variant] = {
    "distrain": by_distrain,
    "distrain_sharded": by_sharded,
    "ddp": by_ddp,
    "zero": by_zero,
}


def measure(num_parameters: int, rounds: int, world: World) -> dict[str, list[float]]:
    """Milliseconds a step, by variant and round, on rank 0's clock."""
    steps = {name: make(num_parameters, world) for name, make in VARIANTS.items()}
    repeats: dict[str, int] = {}
    for name, step in steps.items():
        step()
        took = timed(step, 3, world)
        worst = world.communicator.all_gather(torch.tensor([took])).max().item()
        repeats[name] = max(2, min(300, int(ROUND_S / worst)))
    found: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            gc.collect()
            found[name].append(1e3 * timed(steps[name], repeats[name], world))
    return found


def timed(step: Step, repeats: int, world: World) -> float:
    """Seconds a step."""
    world.communicator.all_gather(torch.zeros(1))
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    world.communicator.all_gather(torch.zeros(1))
    return (time.perf_counter() - began) / repeats


def report(found: Mapping[int, Mapping[str, Sequence[float]]], workers: int) -> dict[str, object]:
    return {
        "config": {"workers": workers, "samples_per_worker": PER_WORKER, "optimizer": "AdamW"},
        "by_parameters": {
            f"{size:,}": {
                "step_ms": {name: round(statistics.median(ms), 3) for name, ms in times.items()},
                "distrain_to_ddp": spread(ratios(times["distrain"], times["ddp"])),
                "sharded_to_unsharded": spread(
                    ratios(times["distrain_sharded"], times["distrain"])
                ),
                "sharded_to_zero": spread(ratios(times["distrain_sharded"], times["zero"])),
            }
            for size, times in found.items()
        },
        **conditions(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of parameters")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--in-worker", action="store_true", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if argv is None else argv)
    known = parser.parse_args(given)
    if known.workers < 2 or known.rounds < 1:
        parser.error("at least 2 workers (DDP needs a group) and 1 round are needed")
    if not known.in_worker:
        root = str(Path(__file__).resolve().parent.parent)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.getenv("PYTHONPATH")]))
        cause = run_workers(["script", __file__, *given, "--in-worker"], known.workers)
        if cause is not None:
            sys.exit(cause.text)
        return
    fix_kernels(1, deterministic=False)
    world = worlds.join()
    sizes = [int(size) for size in known.sizes.split(",")]
    found = {size: measure(size, known.rounds, world) for size in sizes}
    if world.rank == 0:
        text = json.dumps(report(found, world.size), indent=2)
        print(text)
        if known.out is not None:
            known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
