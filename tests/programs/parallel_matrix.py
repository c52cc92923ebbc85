"""Trains every row of the parallel core's matrix in one group of workers; rank 0 writes digests.

Usage: parallel_matrix.py OUT.json torch|horovod
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.config import Backend
from distrain.parallel.replicas import weights_digest

Parameters = Iterable[nn.Parameter]

# 44 rows in batches of 16: the last of an epoch has 12, three of the four micro-batches, so that
# one of 4 workers has none.
ROWS, GLOBAL_BATCH, MICRO_BATCH, EPOCHS, CLASSES = 44, 16, 4, 1, 3

OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


def normed(channels: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class Residual(nn.Module):
    """x + f(x), with dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(1, 6, 3), normed(6, 3), normed(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = nn.functional.dropout(x + self.first(x), 0.2, self.training)
        found: torch.Tensor = x + self.second(x)
        return found


class Branching(nn.Module):
    """Ways of unlike length, with norms and without, one of them used twice, that meet again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.long = nn.Sequential(normed(6, 3), normed(6, 1))
        self.short, self.plain = normed(6, 1), nn.Conv2d(6, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        once: torch.Tensor = self.plain(x)
        found: torch.Tensor = once + self.long(x) + self.short(x) + self.plain(x * 0.5).tanh()
        return found


class Chain(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3)
        self.blocks = nn.Sequential(normed(6, 3), nn.Dropout(0.2), normed(6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.blocks(self.stem(x))
        return found


def with_head(body: Callable[[], nn.Module]) -> nn.Module:
    """The body's 6 maps of 6 x 6, flattened, to 5 norms of one dimension and the classes."""
    return nn.Sequential(
        body(), nn.Flatten(), nn.Linear(216, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)
    )


NETS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "residual": (Residual, []),
    "branching": (Branching, []),
    "checkpointed": (Chain, ["0.blocks.*"]),
}


def train(data: Dataset, body: Callable[[], nn.Module], **options: Any) -> str:
    """The digest of the weights and of every epoch's scores."""
    trainer = distrain.Trainer(
        model=lambda: with_head(body),
        loss=nn.CrossEntropyLoss(),
        inputs="x",
        target="y",
        metrics=["accuracy"],
        clip_norm=1.0,
        progress=False,
        **options,
    )
    history = trainer.fit(
        data, data, epochs=EPOCHS, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH
    )
    scores = [dict(record.scores) for record in history.epochs]
    return f"{weights_digest(trainer.model)} {scores}"


def main(out: Path, backend: Backend) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, 1, 8, 8)).astype(np.float32)
    y = generator.integers(0, CLASSES, ROWS)
    data = Dataset.from_arrays({"x": x, "y": y}, classes={"y": ("a", "b", "c")})
    rows = {}
    for net, batch_norm, optimizer, precision, sharded in itertools.product(
        NETS, ("micro", "sync"), OPTIMIZERS, ("float32", "bfloat16"), (False, True)
    ):
        body, checkpointed = NETS[net]
        row = f"{net} {batch_norm} {optimizer} {precision}"
        rows[f"{row}: {'sharded' if sharded else 'plain'}"] = train(
            data,
            body,
            batch_norm=batch_norm,
            optimizer=OPTIMIZERS[optimizer],
            precision=precision,
            shard_optimizer=sharded,
            activation_checkpointing=checkpointed,
            backend=backend,
        )
    if (
        distrain.Trainer(
            model=Residual,
            loss=nn.MSELoss(),
            optimizer=OPTIMIZERS["sgd"],
            inputs="x",
            target="y",
            backend=backend,
            progress=False,
        ).rank
        == 0
    ):
        out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "horovod" if sys.argv[2] == "horovod" else "torch")
