"""A small training in which one rank hangs or is slow at a place.

Usage: hanging.py RUN_FOLDER, with

    PLANT=PLACE:KIND:CALLS:RANK
        PLACE   loader, forward, evaluation
        KIND    deadlock, loop, hold (the interpreter), stop (SIGSTOP), or slow (100 ms more
                at each call from there on)
        CALLS   of that place come before it
    PLANTED=FILE       made when it hangs, which it does once then
    HANG_TIMEOUT_S, TIMEOUT_S, EPOCHS, WINDOW_S (of slow ranks)
"""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

import distrain
from data_pipeline import Dataset
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import Samples
from distrain.coordinator import slow_ranks

SLOW_S = 0.1

calls: dict[str, int] = {}


def sleep_in_a_deadlock() -> None:
    lock = threading.Lock()
    with lock:
        lock.acquire()


def loop_without_end() -> None:
    while True:
        pass


def stop_this_process() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hold_the_interpreter() -> None:
    while True:
        ctypes.PyDLL(None).sleep(600)  # of C, and no other thread gets a turn


HANGS = {
    "deadlock": sleep_in_a_deadlock,
    "loop": loop_without_end,
    "hold": hold_the_interpreter,
    "stop": stop_this_process,
}


def come_by(place: str) -> None:
    """Does what was planted there."""
    where, kind, after, rank = os.environ.get("PLANT", "nowhere:none:0:0").split(":")
    calls[place] = calls.get(place, 0) + 1
    if (
        place != where
        or rank != (os.environ.get("HOROVOD_RANK") or os.environ.get("RANK", "0"))
        or calls[place] <= int(after)
    ):
        return
    if kind == "slow":
        time.sleep(SLOW_S)
        return
    if "PLANTED" in os.environ:
        mark = Path(os.environ["PLANTED"])
        if mark.exists():
            return
        mark.touch()
    HANGS[kind]()


def load(samples: Samples, draw: Draw) -> None:  # noqa: ARG001 - a transform's arguments
    come_by("loader")


class Planted(torch.nn.Module):
    """Passes its input on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        come_by("forward" if self.training else "evaluation")
        return x


def build() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), Planted(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3)
    )


def main(run: str) -> None:
    slow_ranks.WINDOW_S = float(os.environ.get("WINDOW_S", slow_ranks.WINDOW_S))
    drawn = np.random.default_rng(0)
    x = drawn.normal(size=(64, 4)).astype(np.float32)
    y = drawn.integers(0, 3, 64)
    data = Dataset.from_arrays({"x": x, "y": y}, classes={"y": ["a", "b", "c"]}, name="planted")
    trainer = distrain.Trainer(
        model=build,
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=0.01),
        inputs="x",
        target="y",
        run=run,
        checkpoint=distrain.Checkpoint(every_steps=4),
        hang_timeout_s=float(os.environ.get("HANG_TIMEOUT_S", "480")),
        backend="horovod" if "HOROVOD_RANK" in os.environ else "torch",
        timeout_s=float(os.environ.get("TIMEOUT_S", "600")),
    )
    epochs = int(os.environ.get("EPOCHS", "4"))
    trainer.fit(data, data, epochs=epochs, global_batch=16, micro_batch=4, augment=[load])


if __name__ == "__main__":
    main(sys.argv[1])
