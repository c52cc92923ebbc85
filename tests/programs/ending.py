"""A script whose run ends in a way that is asked for, by its last worker in mid-run.

Usage: ending.py data|storage|config|fault|kill|stop DIGITS RUN
"""

import os
import signal
import sys
from pathlib import Path

import torch

import distrain
from data_pipeline import Dataset

STEPS = 4
NUMBERS = {"kill": signal.SIGKILL, "stop": signal.SIGTERM}


class Ending(torch.nn.Module):
    """Passes its input on; after some passes of this worker it does what is asked for."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self._how, self._passes = how, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._passes += 1
        is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if self._passes == STEPS and is_last:
            if self._how == "fault":
                raise ValueError("planted in the model")
            if self._how in NUMBERS:
                os.kill(os.getpid(), NUMBERS[self._how])
        return x


def main(how: str, digits: str, run: str) -> None:
    trainer = distrain.Trainer(
        model=lambda: torch.nn.Sequential(torch.nn.Flatten(), Ending(how), torch.nn.Linear(64, 10)),
        run="/proc/distrain-run" if how == "storage" else run,
        seed=0,
        inputs="image",
        target="label",
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    train = Dataset(Path(digits) / "gone" if how == "data" else digits, "train")
    trainer.fit(train, epochs=50, global_batch=0 if how == "config" else 256, micro_batch=128)


if __name__ == "__main__":
    main(*sys.argv[1:])
