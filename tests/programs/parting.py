"""Trains a small net; one worker has a bit flipped, leaves, stands still or is given another run.

Usage: parting.py OUT CHECK_EVERY TIMEOUT_S

PARTING="HOW RANK STEP NUMBER" in the environment says what happens to that worker in that step,
counted from 0, between its sum and its update: weight and momentum flip the bit of that number,
exit, error and sleep are what it does, late is a sleep of so many seconds; with epochs it trains
for one less. What happens to another worker comes behind a semicolon. As arguments, it would be
another run.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.micro_batch import Columns, MicroBatchResult

ROWS, GLOBAL_BATCH, MICRO_BATCH, EPOCHS = 80, 16, 4, 6
STEPS_PER_EPOCH = ROWS // GLOBAL_BATCH
SLEEP_S = 1000.0
TOGETHER_S = 300.0
FLIPPED = "2.weight"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))


def planned(step: int) -> tuple[str, int]:
    """What happens to this worker in a step, and its number."""
    for plan in os.environ.get("PARTING", "nothing 0 0 0").split(";"):
        how, rank, at_step, number = plan.split()
        if os.environ.get("RANK", "0") == rank and step == int(at_step):
            return how, int(number)
    return "nothing", 0


def flip(tensor: torch.Tensor, bit: int) -> None:
    # Through .data, as a fault in memory does it: nobody is told.
    tensor.data.reshape(-1)[-1:].view(torch.int32).bitwise_xor_(1 << bit)


def part(trainer: distrain.Trainer, step: int) -> None:
    how, number = planned(step)
    weight = trainer.model.get_parameter(FLIPPED)
    if how == "weight":
        flip(weight, number)
    elif how == "momentum" and trainer.optimizer is not None:
        flip(trainer.optimizer.state[weight]["momentum_buffer"], number)
    elif how == "exit":
        os._exit(0)
    elif how == "error":
        raise ValueError("planted")
    elif how == "late":
        time.sleep(number)
    elif how == "sleep":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # so that its launcher need not wait for it
        time.sleep(SLEEP_S)


def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = model(columns["x"])
    loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
    return loss, len(outputs), outputs


def come_together(folder: Path) -> None:
    """Waits until all workers have imported what they need: joining has the exchanges' limit."""
    folder.mkdir(exist_ok=True)
    (folder / os.environ.get("RANK", "0")).touch()
    end = time.monotonic() + TOGETHER_S
    while len(list(folder.iterdir())) < int(os.environ.get("WORLD_SIZE", "1")):
        assert time.monotonic() < end
        time.sleep(0.01)


def main(out: Path, check_every: int, timeout_s: float) -> None:
    come_together(out.with_name("together"))
    trainers: list[distrain.Trainer] = []

    def schedule(step: int) -> float:
        for trainer in trainers:
            part(trainer, step)
        return 1.0

    generator = np.random.default_rng(0)
    data = Dataset.from_arrays(
        {
            "x": generator.standard_normal((ROWS, 8)).astype(np.float32),
            "y": generator.integers(0, 3, ROWS),
        }
    )
    trainer = distrain.Trainer(
        model=net,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
        inputs="x",
        target="y",
        run=out,
        schedule=schedule,
        micro_batch_step=run,
        checkpoint=distrain.Checkpoint(every_steps=2, every_seconds=None, keep_last=2),
        check_every=check_every,
        timeout_s=timeout_s,
        inspect_every=3,
        progress=False,
    )
    trainers.append(trainer)
    trainer.fit(
        data,
        epochs=EPOCHS - (planned(0)[0] == "epochs"),
        global_batch=GLOBAL_BATCH,
        micro_batch=MICRO_BATCH,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
