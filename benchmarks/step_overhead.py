"""How fast is a training step beside the loops that people write, and beside other libraries?

One small CNN on digits, 64 samples a worker, momentum and clipping by norm, in one process group:

    distrain            Trainer.fit, from memory-mapped shards, with its ledger and prefetching
    distrain_sharded    the same, each worker updating its share of the weights
    ddp_loader          DDP + DataLoader + DistributedSampler: the loop that people write
    ddp_by_hand         DDP over plain index_select with a fused optimizer: the best by hand
    ddp_zero            the same with ZeroRedundancyOptimizer
    lightning           Lightning's Trainer, barebones
    fabric              Lightning Fabric
    accelerate          Hugging Face Accelerate

All see standardised float32 images; none draws a progress bar or writes files. A first round, that
is not measured, proves of each variant that it learns, and from all samples. The rounds are
interleaved, each beginning with another variant. The clock runs for `fit` or the loop, not for the
making of trainers, models and loaders. Reported are samples/s and, by round, the ratio to each
peer, and of the sharded ones to each other.

    pip install -e '.[bench]'      for the last three; one that is not there is left out, and said
    python -m benchmarks.step_overhead [--workers 2] [--rounds 7] [--epochs 20]
                                       [--variants lightning,fabric] [--out FILE.json]
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import distrain
from benchmarks.conditions import conditions, ratios, spread
from benchmarks.digits_job import (
    CLIP_NORM,
    LR,
    MOMENTUM,
    PER_WORKER,
    MakeVariant,
    Trained,
    Training,
    Variant,
    build_net,
    fused_sgd,
    prove,
    tensors,
)
from data_pipeline import Dataset
from data_pipeline.sources.bundled import make_bundled
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from launch.local import run_workers

OURS, SHARDED, ZERO = "distrain", "distrain_sharded", "ddp_zero"

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def by_distrain(data: Dataset, world_size: int, *, sharded: bool = False) -> Variant:
    batch = PER_WORKER * world_size

    def prepare(epochs: int) -> Training:
        trainer = distrain.Trainer(
            model=build_net,
            loss=nn.CrossEntropyLoss(),
            optimizer=fused_sgd,
            inputs="image",
            target="label",
            clip_norm=CLIP_NORM,
            shard_optimizer=sharded,
            deterministic=False,
            progress=False,
        )

        def train() -> Trained:
            trainer.fit(
                data,
                epochs=epochs,
                global_batch=batch,
                micro_batch=PER_WORKER,
                last_batch="drop",
            )
            return Trained(epochs * (len(data) // batch) * batch, trainer.model)

        return train

    return prepare


def by_sharded(data: Dataset, world_size: int) -> Variant:
    return by_distrain(data, world_size, sharded=True)


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

    def prepare(epochs: int) -> Training:
        model = DistributedDataParallel(build_net())
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
        sampler: DistributedSampler[int] = DistributedSampler(dataset, drop_last=True)
        loader = DataLoader(dataset, batch_size=PER_WORKER, sampler=sampler, drop_last=True)

        def train() -> Trained:
            seen = 0
            for epoch in range(epochs):
                sampler.set_epoch(epoch)
                for x, y in loader:
                    step(model, optimizer, x, y)
                    seen += len(x) * world_size
            return Trained(seen, model.module)

        return train

    return prepare


def zero(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """`fused_sgd`, of which each worker holds a share."""
    # Importing it warns of torch.jit.script, which torch 2.13 itself has deprecated.
    from torch.distributed.optim import ZeroRedundancyOptimizer  # noqa: PLC0415

    return ZeroRedundancyOptimizer(
        parameters, torch.optim.SGD, lr=LR, momentum=MOMENTUM, fused=True
    )


def by_ddp_by_hand(
    data: Dataset, world_size: int, make_optimizer: MakeOptimizer = fused_sgd
) -> Variant:
    images, labels = tensors(data)
    rank = worlds.join().rank
    batch = PER_WORKER * world_size

    def prepare(epochs: int) -> Training:
        model = DistributedDataParallel(build_net(), gradient_as_bucket_view=True)
        optimizer = make_optimizer(model.parameters())

        def train() -> Trained:
            seen = 0
            for epoch in range(epochs):
                order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
                for start in range(0, len(labels) - batch + 1, batch):
                    rows = order[start + rank * PER_WORKER :][:PER_WORKER]
                    x, y = images.index_select(0, rows), labels.index_select(0, rows)
                    step(model, optimizer, x, y)
                    seen += batch
            return Trained(seen, model.module)

        return train

    return prepare


def by_zero(data: Dataset, world_size: int) -> Variant:
    return by_ddp_by_hand(data, world_size, zero)


VARIANTS: Mapping[str, MakeVariant] = {
    OURS: by_distrain,
    SHARDED: by_sharded,
    "ddp_loader": by_ddp_loader,
    "ddp_by_hand": by_ddp_by_hand,
    ZERO: by_zero,
}

PEERS = {
    "lightning": ("lightning", "benchmarks.lightning_peers"),
    "fabric": ("lightning", "benchmarks.lightning_peers"),
    "accelerate": ("accelerate", "benchmarks.accelerate_peer"),
}
"""By variant, the package that it needs, and the module that has `by_VARIANT` and imports it."""


def maker(name: str) -> MakeVariant:
    if name in VARIANTS:
        return VARIANTS[name]
    make: MakeVariant = getattr(import_module(PEERS[name][1]), f"by_{name}")
    return make


def runnable(names: Sequence[str]) -> list[str]:
    """The variants whose packages are there; of those that are not, it says so on stderr."""
    found, missing = list[str](), dict[str, list[str]]()
    for name in names:
        package = PEERS[name][0] if name in PEERS else None
        if package is None or importlib.util.find_spec(package) is not None:
            found.append(name)
        else:
            missing.setdefault(package, []).append(name)
    for package, left_out in missing.items():
        print(
            f"{package} is not installed: pip install -e '.[bench]'; "
            f"left out: {', '.join(left_out)}",
            file=sys.stderr,
        )
    return found


def measure(
    data: Dataset, names: Sequence[str], rounds: int, epochs: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """By variant, samples a second by round, on rank 0's clock, and the loss that was reached."""
    world = worlds.join()
    variants = {name: maker(name)(data, world.size) for name in names}
    losses: dict[str, float] = {}
    for name, prepare in variants.items():
        fix_kernels(1, deterministic=False)  # the one before may have set others
        losses[name] = prove(name, prepare, epochs, data, world)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            fix_kernels(1, deterministic=False)
            train = variants[name](epochs)
            gc.collect()
            world.communicator.all_gather(torch.zeros(1))
            began = time.perf_counter()
            samples = train().samples
            world.communicator.all_gather(torch.zeros(1))
            found[name].append(samples / (time.perf_counter() - began))
    return found, losses


def report(
    found: Mapping[str, Sequence[float]], losses: Mapping[str, float], workers: int, epochs: int
) -> dict[str, object]:
    sharded: dict[str, object] = {}
    if SHARDED in found and ZERO in found:
        ratio = spread(ratios(found[SHARDED], found[ZERO]))
        sharded = {f"ratio_of_{SHARDED}_to_{ZERO}": ratio}
    return {
        "config": {
            "workers": workers,
            "samples_per_worker": PER_WORKER,
            "rounds": len(found[OURS]),
            "epochs_per_round": epochs,
            "lr": LR,
            "momentum": MOMENTUM,
            "clip_norm": CLIP_NORM,
        },
        "samples_per_s": {name: round(statistics.median(s)) for name, s in found.items()},
        "ratio_of_distrain_to": {
            name: spread(ratios(found[OURS], speeds))
            for name, speeds in found.items()
            if name != OURS
        },
        **sharded,
        "loss_reached": {name: round(loss, 4) for name, loss in losses.items()},
        **conditions(sorted({PEERS[name][0] for name in found if name in PEERS})),
    }


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=20)
    every = [*VARIANTS, *PEERS]
    parser.add_argument(
        "--variants", default=",".join(every), help=f"of {', '.join(every)}; {OURS} always runs"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if known.workers < 2 or known.rounds < 1 or known.epochs < 1:
        parser.error("at least 2 workers (DDP needs a group), 1 round and 1 epoch are needed")
    asked = known.variants.split(",")
    if unknown := sorted(set(asked) - set(every)):
        parser.error(f"no variant is called {', '.join(unknown)}; there are {', '.join(every)}")
    known.variants = [name for name in every if name == OURS or name in asked]
    return known


def start_workers(known: argparse.Namespace) -> None:
    """Runs this file on every worker."""
    names = ",".join(runnable(known.variants))
    # The workers don't look into the working directory.
    root = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    options = ["--rounds", known.rounds, "--epochs", known.epochs, "--workers", known.workers]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        make_bundled("digits", data)
        options += ["--variants", names, "--data", data]
        options += ["--out", known.out] if known.out else []
        cause = run_workers(["script", __file__, *map(str, options)], known.workers)
    if cause is not None:
        sys.exit(cause.text)


def main(argv: Sequence[str] | None = None) -> None:
    known = parsed(sys.argv[1:] if argv is None else argv)
    if known.data is None:
        start_workers(known)
        return
    found, losses = measure(Dataset(known.data), known.variants, known.rounds, known.epochs)
    world = worlds.join()
    if world.rank == 0:
        text = json.dumps(report(found, losses, world.size, known.epochs), indent=2)
        print(text)
        if known.out is not None:
            known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
