"""Trains every row of the matrix of ways to sum in one process group; rank 0 writes a digest a row.

Usage: sums.py OUT.json [BACKEND [OPTIMIZER,...]]
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import distrain
from data_pipeline import Dataset
from distrain.numerics import NORM_BLOCK
from distrain.parallel.replicas import weights_digest
from distrain.parallel.summing import SumOptions

Parameters = Iterable[nn.Parameter]

# 92 rows in batches of 32: the last of an epoch has 28, four micro-batches of which one is short.
ROWS, GLOBAL_BATCH, MICRO_BATCH, EPOCHS, CLASSES = 92, 32, 8, 2, 3

BACKEND: Any = sys.argv[2] if len(sys.argv) > 2 else "torch"

WAYS = {
    "whole": SumOptions(whole_words=2**30),
    "parts": SumOptions(whole_words=0, part_words=NORM_BLOCK),
    "one_part": SumOptions(whole_words=0),
    "sharded": SumOptions(shard_optimizer=True, whole_words=0),
    "sharded_whole": SumOptions(shard_optimizer=True),
    "sharded_parts": SumOptions(shard_optimizer=True, whole_words=0, part_words=2 * NORM_BLOCK),
}
"""All of a row's ways have to end with the same bits."""

OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.001),
}


class Net(nn.Module):
    """About 14,000 parameters, none of a round size; one unused, one frozen, one of no dimension.

    The middle is used twice, and is recomputed in the backward pass: its gradients are accumulated
    a second time after they were there once.
    """

    def __init__(self, *, reentrant: bool | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.first, self.middle = nn.Linear(9, 67), nn.Linear(67, 67)
        self.wide, self.back = nn.Linear(67, 61), nn.Linear(61, 67)
        self.unused, self.frozen = nn.Linear(11, 5), nn.Linear(67, 3)
        self.frozen.requires_grad_(False)
        self.sometimes = nn.Linear(9, CLASSES)
        self.head, self.reentrant = nn.Linear(67, CLASSES), reentrant

    def again(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.middle(x).tanh(), 0.1, self.training) + x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).tanh()
        for _ in range(2):
            if self.reentrant is None:
                hidden = self.again(hidden)
            else:
                hidden = checkpoint(self.again, hidden, use_reentrant=self.reentrant)
        hidden = self.back(self.wide(hidden).relu()) * self.scale
        outputs: torch.Tensor = self.head(hidden) + self.frozen(hidden)
        return outputs + self.sometimes(x) if x[0, 0] > 0 else outputs


def train(
    data: Dataset,
    options: SumOptions,
    optimizer: Callable[[Parameters], torch.optim.Optimizer],
    net: Callable[[], nn.Module] = Net,
    **more: Any,
) -> str:
    """One row: the digest of the weights and of every epoch's scores."""
    settings: dict[str, Any] = {"clip_norm": 1.0, "gradient_dtype": options.gradient_dtype, **more}
    trainer = distrain.Trainer(
        model=net,
        loss=nn.CrossEntropyLoss(),
        optimizer=optimizer,
        inputs="x",
        target="y",
        progress=False,
        backend=BACKEND,
        **settings,
    )
    trainer._step_settings = replace(trainer._step_settings, sums=options)
    history = trainer.fit(data, epochs=EPOCHS, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH)
    return f"{weights_digest(trainer.model)} {[dict(record.scores) for record in history.epochs]}"


def main(out: Path, optimizers: Iterable[str]) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, 9)).astype(np.float32)
    data = Dataset.from_arrays({"x": x, "y": generator.integers(0, CLASSES, ROWS)})
    sgd = OPTIMIZERS["sgd"]
    rows = {
        f"{optimizer}-{way}": train(data, WAYS[way], OPTIMIZERS[optimizer])
        for optimizer in optimizers
        for way in ("whole", "parts", "sharded")
    }
    for way, options in WAYS.items():
        rows[f"recomputed-{way}"] = train(data, options, sgd, lambda: Net(reentrant=False))
        rows[f"reentrant-{way}"] = train(data, options, sgd, lambda: Net(reentrant=True))
        rows[f"clip_value-{way}"] = train(data, options, sgd, clip_norm=0.1, clip_value=0.01)
        rounded = SumOptions(**{**vars(options), "gradient_dtype": "bfloat16"})
        rows[f"bfloat16-{way}"] = train(data, rounded, sgd)
    rank = distrain.Trainer(
        model=Net,
        loss=nn.CrossEntropyLoss(),
        optimizer=sgd,
        inputs="x",
        target="y",
        backend=BACKEND,
    ).rank
    if rank == 0:
        out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[3].split(",") if len(sys.argv) > 3 else OPTIMIZERS)
