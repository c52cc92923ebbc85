"""Trains a sharded run that goes back from bad numbers, and kills a worker in each start but one.

Usage: sharded_going_back.py RUN CALL:RANK...     by start: in which call of a step, from 1
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch import nn

import distrain
from distrain.parallel.replicas import weights_digest
from distrain.step import StepResult, TrainingStep
from tests.programs.bad_numbers import CASES, adam, train, with_both


def wide_net() -> nn.Module:
    """Each of three workers has a share of it."""
    return nn.Sequential(nn.Linear(8, 800), nn.BatchNorm1d(800), nn.ReLU(), nn.Linear(800, 3))


def die_in(call: int) -> None:
    calls, work = 0, TrainingStep.__call__

    def counted(self: TrainingStep, *args: Any, **keywords: Any) -> StepResult:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(self, *args, **keywords)

    TrainingStep.__call__ = counted  # type: ignore[method-assign]


def main(run: Path, *deaths: str) -> None:
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if start < len(deaths):
        call, rank = map(int, deaths[start].split(":"))
        if os.environ["RANK"] == str(rank):
            die_in(call)
    trainer = train(
        run,
        model=wide_net,
        optimizer=adam,
        micro_batch_step=with_both,
        shard_optimizer=True,
        bad_numbers=CASES["back_sync_sharded"]["bad_numbers"],
        average=distrain.ExponentialAverage(0.8),
        early_stopping=distrain.EarlyStopping("val_loss", patience=9, restore_best=True),
        checkpoint=distrain.Checkpoint(every_seconds=None, snapshot_every=1),
    )
    if trainer.rank == 0:
        print(weights_digest(trainer.model))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
