"""A small model with batch norm that is slow, dies or raises where the environment says so.

For `model.build = "faulty_model:build"`, with two micro-batches a step and one or two workers; with
more of them where no fault is planted.

    FAULT=RANK:KIND:STEPS   in training, after so many steps of this start, on this rank (or `all`):
                            hang (for ten minutes), kill or raise; or lose: at the model's
                            building, the first time alone, the worker is killed
    STEP_S, EVALUATION_S    how long a training step, and a forward pass of an evaluation, take
    HOLD=FILE               the model is not built as long as this is there
    CALLS=FILE              FILE-RANK gets a line for each build, and each pass of an evaluation
"""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn

MICRO_BATCHES = 2

HANG_S = 600.0

RANK = os.environ.get("HOROVOD_RANK") or os.environ.get("RANK", "0")
WORLD_SIZE = os.environ.get("HOROVOD_SIZE") or os.environ.get("WORLD_SIZE", "1")


def note(what: str) -> None:
    """Leaves a line for the test."""
    if "CALLS" in os.environ:
        with Path(f"{os.environ['CALLS']}-{RANK}").open("a") as file:
            file.write(f"{what}\n")


class Fault(nn.Module):
    """Passes its input on, and does what the environment says in a step's last own micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self._passes = 0
        self._passes_per_step = max(1, MICRO_BATCHES // int(WORLD_SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            note("evaluation")
            time.sleep(float(os.environ.get("EVALUATION_S", "0")))
            return x
        self._passes += 1
        time.sleep(float(os.environ.get("STEP_S", "0")) / self._passes_per_step)
        kind, steps = planted()
        if self._passes == (steps + 1) * self._passes_per_step:
            fail(kind)
        return x


def planted() -> tuple[str, int]:
    """What is to happen on this rank, and after how many steps."""
    rank, kind, steps = os.environ.get("FAULT", "all:nothing:0").split(":")
    return (kind if rank in (RANK, "all") else "nothing"), int(steps)


def fail(kind: str) -> None:
    if kind in ("hang", "kill", "raise"):
        note(kind)
    if kind == "hang":
        end = time.monotonic() + HANG_S
        while time.monotonic() < end:  # a signal must not end it
            time.sleep(HANG_S)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "raise":
        raise ValueError("planted in the model")


def build(num_outputs: int) -> nn.Module:
    note("build")
    while "HOLD" in os.environ and Path(os.environ["HOLD"]).exists():
        time.sleep(0.01)
    if planted()[0] == "lose" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
        fail("kill")
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        Fault(),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, num_outputs),
    )
