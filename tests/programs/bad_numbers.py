"""Trains runs in which planted samples spoil steps; rank 0 writes what each run came to.

Each case runs in FOLDER/whole-W to its end; and in FOLDER/run, which goes on with what it finds.

Usage: bad_numbers.py FOLDER OUT.json [CUT]     CUT ends the latter in that call of a step, from 1
"""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.replicas import weights_digest
from distrain.parallel.world import join
from distrain.step import StepResult, TrainingStep

# 44 rows in batches of 16: an epoch has 3 steps, the last of 12 samples in 3 micro-batches.
ROWS, GLOBAL_BATCH, MICRO_BATCH, EPOCHS = 44, 16, 4, 4
NAN, JUMP = 17, 30
"""The row whose loss is not finite, and the one whose loss is a thousand times as high."""


class PowerCutError(Exception):
    """Ends a run in mid-step."""


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def dropout_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


def planted_data() -> Dataset:
    """A column marks the planted rows by 1 and 2."""
    generator = np.random.default_rng(0)
    mark = np.zeros(ROWS, np.int64)
    mark[NAN], mark[JUMP] = 1, 2
    x = generator.standard_normal((ROWS, 8)).astype(np.float32)
    y = generator.integers(0, 3, ROWS)
    return Dataset.from_arrays({"x": x, "y": y, "mark": mark}, classes={"y": ("a", "b", "c")})


def planted(model: nn.Module, columns: Columns, factors: tuple[float, ...]) -> MicroBatchResult:
    """Cross-entropy; in training, times a factor by mark."""
    outputs = model(columns["x"])
    each = nn.functional.cross_entropy(outputs, columns["y"], reduction="none")
    if model.training:
        each = each * torch.tensor(factors)[columns["mark"]]
    return each.sum(), len(each), outputs


def with_nan(model: nn.Module, columns: Columns) -> MicroBatchResult:
    return planted(model, columns, (1.0, torch.nan, 1.0))


def with_jump(model: nn.Module, columns: Columns) -> MicroBatchResult:
    return planted(model, columns, (1.0, 1.0, 1000.0))


def with_both(model: nn.Module, columns: Columns) -> MicroBatchResult:
    """The gradient of the one row is not finite, its loss is; the loss of the other jumps."""
    loss, weight, outputs = planted(model, columns, (1.0, 1.0, 1000.0))
    assert outputs is not None
    marked = outputs[columns["mark"] == 1]
    # The root's derivative at 0 is not finite.
    return loss + (marked.sum(1) * 0).sqrt().sum() * model.training, weight, outputs


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.NAdam(parameters, lr=0.01)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


SPIKES: dict[str, Any] = {"least_steps": 2, "window_steps": 5}

CASES: dict[str, dict[str, Any]] = {
    "skipped": {
        "bad_numbers": distrain.BadNumbers(non_finite="skip"),
        "average": distrain.ExponentialAverage(0.8),
    },
    "skipped_sync": {
        "bad_numbers": distrain.BadNumbers(non_finite="skip", spike="skip", **SPIKES),
        "micro_batch_step": with_both,
        "batch_norm": "sync",
    },
    "skipped_sharded": {
        "model": dropout_net,
        "bad_numbers": distrain.BadNumbers(spike="skip", watch="grad_norm", **SPIKES),
        "micro_batch_step": with_jump,
        "shard_optimizer": True,
        "optimizer": adam,
    },
    "back": {
        "bad_numbers": distrain.BadNumbers(non_finite="go_back", every_steps=4, lr_factor=0.5),
        "average": distrain.ExponentialAverage(0.8, start_step=2),
        "early_stopping": distrain.EarlyStopping("val_loss", patience=9, restore_best=True),
    },
    "back_sync_sharded": {
        "bad_numbers": distrain.BadNumbers(
            non_finite="go_back", spike="go_back", every_steps=5, **SPIKES
        ),
        "micro_batch_step": with_both,
        "batch_norm": "sync",
        "optimizer": adam,
        "shard_optimizer": True,
    },
    "back_and_skipped": {
        "model": dropout_net,
        "bad_numbers": distrain.BadNumbers(
            non_finite="go_back", spike="skip", every_steps=3, **SPIKES
        ),
        "micro_batch_step": with_both,
        "optimizer": adam,
        "average": distrain.StochasticAverage(3, every_steps=1),
    },
}


def train(folder: Path | None, **options: Any) -> distrain.Trainer:
    settings: dict[str, Any] = {
        "model": net,
        "optimizer": sgd,
        "micro_batch_step": with_nan,
        "checkpoint": distrain.Checkpoint(every_steps=2, every_seconds=None),
        "metrics": ["accuracy"],
        "check_every": 1,
        **options,
    }
    trainer = distrain.Trainer(
        loss=nn.CrossEntropyLoss(), inputs="x", target="y", run=folder, progress=False, **settings
    )
    data = planted_data()
    trainer.fit(
        data, data, epochs=EPOCHS, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, verify=False
    )
    return trainer


def cut_in(call: int) -> Callable[..., StepResult]:
    """A step's work that ends the run in its so-manieth call, on every worker alike."""
    calls, work = 0, TrainingStep.__call__

    def counted(self: TrainingStep, *args: Any, **keywords: Any) -> StepResult:
        nonlocal calls
        calls += 1
        if calls == call:
            raise PowerCutError
        return work(self, *args, **keywords)

    return counted


def cut_off(folder: Path, call: int, options: Mapping[str, Any]) -> None:
    work = TrainingStep.__call__
    TrainingStep.__call__ = cut_in(call)  # type: ignore[method-assign]
    try:
        with suppress(PowerCutError):
            train(folder, **options)
    finally:
        TrainingStep.__call__ = work  # type: ignore[method-assign]


def main(folder: Path, out: Path, cut: int | None) -> None:
    world = join()
    found: dict[str, list[str]] = {}
    for name, options in CASES.items():
        ended = [train(folder / f"whole-{world.size}" / name, **options)]
        if cut is not None:
            cut_off(folder / "run" / name, cut, options)
        else:
            ended.append(train(folder / "run" / name, **options))
        found[name] = [weights_digest(trainer.model) for trainer in ended]
    if world.rank == 0:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
