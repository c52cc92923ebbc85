"""Trains a small net, and kills or stops itself at moments that the command line names.

snapshots.py RUN [--kill-in-step N | --hang-in-step N] [--rank N]
                 [--kill-in-copy N | --kill-in-write N] [--fresh]

Steps are counted from 0, from where this start begins; nothing happens after a restart.
"""

import argparse
import os
import pathlib
import signal
import threading
import time

import numpy as np
import torch

import distrain
from data_pipeline import Dataset
from distrain.coordinator import snapshot
from distrain.parallel.replicas import weights_digest

parser = argparse.ArgumentParser()
parser.add_argument("run")
parser.add_argument("--kill-in-step", type=int, default=-1)
parser.add_argument("--kill-in-copy", type=int, default=-1)
parser.add_argument("--kill-in-write", type=int, default=-1)
parser.add_argument("--hang-in-step", type=int, default=-1)
parser.add_argument("--rank", type=int, default=0)
parser.add_argument("--fresh", action="store_true")
arguments = parser.parse_args()

MICRO_BATCHES = 4 // int(os.environ.get("WORLD_SIZE", "1"))
here = int(os.environ.get("RANK", "0")) == arguments.rank
here = here and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
calls, copies, writes = {"done": 0}, {"done": 0}, {"done": 0}


def micro_batch_step(model, columns):  # type: ignore[no-untyped-def]
    """The second micro-batch of a step is the moment for what is asked for."""
    moment(calls)
    outputs = model(columns["x"])
    return torch.nn.functional.mse_loss(outputs, columns["y"], reduction="sum"), 8, None


def moment(calls: dict[str, int]) -> None:
    step, micro_batch = divmod(calls["done"], MICRO_BATCHES)
    calls["done"] += 1
    if micro_batch != 1 or not here:
        return
    if step == arguments.kill_in_step:
        os.kill(os.getpid(), signal.SIGKILL)
    if step == arguments.hang_in_step:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def cut_off(tensors, to):  # type: ignore[no-untyped-def]
    """Copies all but half a tensor of the state, and dies."""
    copies["done"] += 1
    if copies["done"] == arguments.kill_in_copy:
        name = next(iter(tensors))
        to[name].view(-1)[: to[name].numel() // 2].fill_(-1.0)
        os.kill(os.getpid(), signal.SIGKILL)
    copy(tensors, to)


copy, snapshot.copy_group = snapshot.copy_group, cut_off


def counted(function):  # type: ignore[no-untyped-def]
    """Dies before an operation of the second checkpoint's write."""

    def count(*given, **more):  # type: ignore[no-untyped-def]
        in_background = threading.current_thread().name.startswith("distrain-")
        if in_background and (run / "checkpoints" / "step-000000004").exists():
            writes["done"] += 1
            if writes["done"] == arguments.kill_in_write:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **more)

    return count


run = pathlib.Path(arguments.run)
if arguments.kill_in_write > 0:
    for name in ("pwritev", "fsync", "rename"):
        setattr(os, name, counted(getattr(os, name)))  # type: ignore[no-untyped-call]
draw = np.random.default_rng(0)
x = draw.standard_normal((128, 5)).astype("float32")
trainer = distrain.Trainer(
    model=lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1)),
    loss=torch.nn.MSELoss(),
    inputs="x",
    target="y",
    run=arguments.run,
    grace_s=1.0,
    fresh=arguments.fresh,
    progress=False,
    checkpoint=distrain.Checkpoint(
        every_steps=4 if arguments.kill_in_write > 0 else None, every_seconds=None, snapshot_every=1
    ),
    optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    micro_batch_step=micro_batch_step,
)
trainer.fit(
    Dataset.from_arrays({"x": x, "y": x[:, :1] * 2}), epochs=3, global_batch=32, micro_batch=8
)
if trainer.rank == 0:
    print(weights_digest(trainer.model))
