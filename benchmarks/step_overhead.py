"""How fast is a training step beside the loops that people write on DistributedDataParallel?

One small CNN on digits, 64 samples a worker, momentum and clipping by norm, in one process group:

    distrain        Trainer.fit, from memory-mapped shards, with its ledger and prefetching
    ddp_loader      DDP + DataLoader + DistributedSampler: the loop that people write
    ddp_by_hand     DDP over plain index_select with a fused optimizer: the best by hand

All see standardised float32 images; none draws a progress bar or writes files. The rounds are
interleaved; reported are samples/s (median over rounds) and, by round, the ratio to each peer.

    python -m benchmarks.step_overhead [--workers 2] [--rounds 7] [--epochs 20] [--out FILE.json]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import distrain
from data_pipeline import Dataset
from data_pipeline.sources.bundled import make_bundled
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from launch.local import run_workers

PER_WORKER = 64
CLIP_NORM = 1.0

Variant = Callable[[int], int]
"""Trains for some epochs; returns the samples that all workers together have seen."""


def build_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def by_distrain(data: Dataset, world_size: int) -> Variant:
    def train(epochs: int) -> int:
        trainer = distrain.Trainer(
            model=build_net,
            loss=nn.CrossEntropyLoss(),
            optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
            inputs="image",
            target="label",
            clip_norm=CLIP_NORM,
            deterministic=False,
            progress=False,
        )
        trainer.fit(
            data,
            epochs=epochs,
            global_batch=PER_WORKER * world_size,
            micro_batch=PER_WORKER,
            last_batch="drop",
        )
        return epochs * (len(data) // (PER_WORKER * world_size)) * PER_WORKER * world_size

    return train


def tensors(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All images, standardised, and labels."""
    rows = np.arange(len(data))
    images, labels = np.empty((len(data), 1, 8, 8), np.uint8), np.empty(len(data), np.int64)
    data.gather("image", rows, images)
    data.gather("label", rows, labels)
    scaled = (images - images.mean()) / images.std()
    return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(labels)


def step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> None:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()


def by_ddp_loader(data: Dataset, world_size: int) -> Variant:
    dataset = TensorDataset(*tensors(data))

    def train(epochs: int) -> int:
        model = DistributedDataParallel(build_net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        sampler: DistributedSampler[int] = DistributedSampler(dataset, drop_last=True)
        loader = DataLoader(dataset, batch_size=PER_WORKER, sampler=sampler, drop_last=True)
        seen = 0
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for x, y in loader:
                step(model, optimizer, x, y)
                seen += len(x) * world_size
        return seen

    return train


def by_ddp_by_hand(data: Dataset, world_size: int) -> Variant:
    images, labels = tensors(data)
    rank = worlds.join().rank
    batch = PER_WORKER * world_size

    def train(epochs: int) -> int:
        model = DistributedDataParallel(build_net(), gradient_as_bucket_view=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
        seen = 0
        for epoch in range(epochs):
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
            for start in range(0, len(labels) - batch + 1, batch):
                first = start + rank * PER_WORKER
                rows = order[first : first + PER_WORKER]
                step(model, optimizer, images.index_select(0, rows), labels.index_select(0, rows))
                seen += batch
        return seen

    return train


def measure(data: Dataset, rounds: int, epochs: int) -> dict[str, list[float]]:
    """Samples a second by variant and round, on rank 0's clock, a barrier before each."""
    world = worlds.join()
    fix_kernels(1, deterministic=False)
    makers = {
        "distrain": by_distrain,
        "ddp_loader": by_ddp_loader,
        "ddp_by_hand": by_ddp_by_hand,
    }
    variants = {name: make(data, world.size) for name, make in makers.items()}
    found: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, train in variants.items():
            world.communicator.all_gather(torch.zeros(1))
            began = time.perf_counter()
            seen = train(epochs)
            world.communicator.all_gather(torch.zeros(1))
            if number:  # the first round warms up
                found[name].append(seen / (time.perf_counter() - began))
    return found


def report(found: dict[str, list[float]], workers: int, epochs: int) -> dict[str, object]:
    ours = found["distrain"]
    ratios = {
        name: [mine / theirs for mine, theirs in zip(ours, speeds, strict=True)]
        for name, speeds in found.items()
        if name != "distrain"
    }
    return {
        "workers": workers,
        "samples_per_worker": PER_WORKER,
        "rounds": len(ours),
        "epochs_per_round": epochs,
        "samples_per_s": {name: round(statistics.median(s)) for name, s in found.items()},
        "ratio_of_distrain_to": {
            name: {
                "median": round(statistics.median(values), 3),
                "min": round(min(values), 3),
                "max": round(max(values), 3),
            }
            for name, values in ratios.items()
        },
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def main(argv: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if known.data is None:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "digits"
            make_bundled("digits", data)
            again = ["script", __file__, *arguments, "--data", str(data)]
            cause = run_workers(again, known.workers)
        if cause is not None:
            sys.exit(cause.text)
        return
    found = measure(Dataset(known.data), known.rounds, known.epochs)
    world = worlds.join()
    if world.rank == 0:
        text = json.dumps(report(found, world.size, known.epochs), indent=2)
        print(text)
        if known.out is not None:
            known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
