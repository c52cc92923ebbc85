"""What does batch norm over the whole global batch cost, beside that of each micro-batch?

A small CNN with four batch norms on digits, momentum, no clipping, in one process group:

    sync         Trainer.fit with batch_norm = "sync": two meetings a norm and step, and one more
    micro        Trainer.fit with batch_norm = "micro": no exchange but the gradients'
    torch        on one worker: a plain loop, the whole batch at once through torch's BatchNorm

Torch's own SyncBatchNorm takes no tensors of a CPU, and is no peer here. The rounds are
interleaved, each beginning with another variant. The clock runs for `fit` or the loop, not for the
making of trainers and models. Reported are milliseconds a step, and by round the ratio of sync to
each other.

    python -m benchmarks.batch_norm [--workers 2] [--micro-batches 4] [--rounds 7] [--epochs 5]
                                    [--out FILE.json]
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

import distrain
from benchmarks.conditions import conditions, ratios, spread
from benchmarks.digits_job import fused_sgd, mean_loss, tensors
from data_pipeline import Dataset
from data_pipeline.sources.bundled import make_bundled
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from launch.local import run_workers

MICRO_BATCH = 32
LOSS_UNTRAINED = 2.3

Training = Callable[[], tuple[nn.Module, int]]
"""Trains a model that was set up; gives it, and the steps that it took."""

Variant = Callable[[int], Training]
"""Sets up a training of some epochs."""


def build_net() -> nn.Module:
    def block(num_in: int, num_out: int) -> list[nn.Module]:
        convolution = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(num_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), *block(32, 64),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def by_distrain(
    data: Dataset, num_micro_batches: int, batch_norm: Literal["micro", "sync"]
) -> Variant:
    batch = MICRO_BATCH * num_micro_batches

    def prepare(epochs: int) -> Training:
        trainer = distrain.Trainer(
            model=build_net,
            loss=nn.CrossEntropyLoss(),
            optimizer=fused_sgd,
            inputs="image",
            target="label",
            batch_norm=batch_norm,
            deterministic=False,
            progress=False,
        )

        def train() -> tuple[nn.Module, int]:
            trainer.fit(
                data, epochs=epochs, global_batch=batch, micro_batch=MICRO_BATCH, last_batch="drop"
            )
            return trainer.model, epochs * (len(data) // batch)

        return train

    return prepare


def by_torch(data: Dataset, num_micro_batches: int) -> Variant:
    batch = MICRO_BATCH * num_micro_batches
    images, labels = tensors(data)
    steps = len(labels) // batch

    def prepare(epochs: int) -> Training:
        torch.manual_seed(0)
        model = build_net()
        optimizer = fused_sgd(model.parameters())

        def train() -> tuple[nn.Module, int]:
            for _ in range(epochs):
                for rows in torch.randperm(len(labels))[: steps * batch].view(steps, batch):
                    optimizer.zero_grad()
                    outputs = model(images.index_select(0, rows))
                    loss = nn.functional.cross_entropy(outputs, labels.index_select(0, rows))
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            return model, epochs * steps

        return train

    return prepare


def measure(
    data: Dataset, num_micro_batches: int, rounds: int, epochs: int
) -> dict[str, list[float]]:
    """By variant, milliseconds a step by round, on this worker's clock.

    Raises:
        RuntimeError: a variant learns nothing.
    """
    world = worlds.join()
    variants: dict[str, Variant] = {
        "sync": by_distrain(data, num_micro_batches, "sync"),
        "micro": by_distrain(data, num_micro_batches, "micro"),
    }
    if world.size == 1:
        variants["torch"] = by_torch(data, num_micro_batches)
    names, found = list(variants), {name: list[float]() for name in variants}
    for number in range(-1, rounds):  # the first is no round: it warms up
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            fix_kernels(1, deterministic=False)
            train = variants[name](epochs)
            gc.collect()
            world.communicator.all_gather(torch.zeros(1))
            began = time.perf_counter()
            model, steps = train()
            seconds = time.perf_counter() - began
            if not mean_loss(model, data) < LOSS_UNTRAINED:
                raise RuntimeError(f"{name} learns nothing in {steps} steps")
            if number >= 0:
                found[name].append(1e3 * seconds / steps)
    return found


def report(
    found: Mapping[str, Sequence[float]], workers: int, num_micro_batches: int, epochs: int
) -> dict[str, object]:
    return {
        "config": {
            "workers": workers,
            "micro_batches": num_micro_batches,
            "micro_batch": MICRO_BATCH,
            "norms": sum(isinstance(module, nn.BatchNorm2d) for module in build_net().modules()),
            "rounds": len(found["sync"]),
            "epochs_per_round": epochs,
        },
        "ms_a_step": {name: spread(times) for name, times in found.items()},
        "least_ms_above_micro": round(min(found["sync"]) - min(found["micro"]), 3),
        "median_ms_above_micro": round(
            statistics.median(found["sync"]) - statistics.median(found["micro"]), 3
        ),
        "time_of_sync_as_a_ratio_to": {
            name: spread(ratios(found["sync"], times))
            for name, times in found.items()
            if name != "sync"
        },
        **conditions(),
    }


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if not 1 <= known.workers <= known.micro_batches or known.rounds < 1 or known.epochs < 1:
        parser.error("1 round, 1 epoch and 1 worker are needed, and no more than micro-batches")
    return known


def start_workers(known: argparse.Namespace) -> None:
    """Runs this file on every worker."""
    # The workers don't look into the working directory.
    root = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    options = ["--workers", known.workers, "--micro-batches", known.micro_batches]
    options += ["--rounds", known.rounds, "--epochs", known.epochs]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        make_bundled("digits", data)
        options += ["--data", data, *(["--out", known.out] if known.out else [])]
        cause = run_workers(["script", __file__, *map(str, options)], known.workers)
    if cause is not None:
        sys.exit(cause.text)


def main(argv: Sequence[str] | None = None) -> None:
    known = parsed(sys.argv[1:] if argv is None else argv)
    if known.data is None:
        start_workers(known)
        return
    found = measure(Dataset(known.data), known.micro_batches, known.rounds, known.epochs)
    world = worlds.join()
    if world.rank == 0:
        text = json.dumps(report(found, world.size, known.micro_batches, known.epochs), indent=2)
        print(text)
        if known.out is not None:
            known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
