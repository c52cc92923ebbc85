"""Trains every row of the bit matrix in one process group; rank 0 writes a digest a row.

Usage: matrix.py OUT.json [sync]     with "sync", the rows of synchronised batch norm
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import distrain
from data_pipeline import Dataset
from distrain.learn.losses import LossResult
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.replicas import weights_digest
from distrain.parallel.world import join

Parameters = Iterable[nn.Parameter]

# 44 rows in batches of 16: the last of an epoch has 12, three of the four micro-batches.
ROWS, GLOBAL_BATCH, MICRO_BATCH, EPOCHS = 44, 16, 4, 2
CLASSES = 3
LARGE = 1.5

OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def dropout_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


def batch_norm_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def frozen_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    net[0].requires_grad_(False)
    return net


def tied_net() -> nn.Module:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(8, CLASSES))


class Unused(nn.Module):
    """Has a branch that is never taken, and one that only some samples take."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.never = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.sometimes = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.used(x)
        return outputs + self.sometimes(x) if x[0, 0] > 0 else outputs


class Branching(nn.Module):
    """Four ways of unlike length that meet again, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(8, 16)
        self.c = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = self.a(x).relu() + self.b(x) * self.a(x * 0.5).sigmoid() + self.c(x)
        outputs: torch.Tensor = self.head(joined)
        return outputs


class Recurrent(nn.Module):
    """An LSTM over 4 steps of 2 features."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(x.view(-1, 4, 2))
        outputs: torch.Tensor = self.head(states[:, -1])
        return outputs


class Embedded(nn.Module):
    """A sparse gradient: most entries of the table are not looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8, sparse=True), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.head(self.table((x[:, 0].abs() * 20).long().clamp(max=49)))
        return outputs


def odd_net() -> nn.Module:
    """Sizes whose matrix products give other bits where an operand is not aligned."""
    return nn.Sequential(nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, CLASSES))


def convolution_net() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )


class Residual(nn.Module):
    """Norms on both sides of a skip, dropout between them; half of it may be computed again."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 8, 3, padding=1))
        self.around = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.leave = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
        self.head, self.again = nn.Linear(64, CLASSES), again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        y = checkpoint(self.around, x, use_reentrant=False) if self.again else self.around(x)
        outputs: torch.Tensor = self.head(self.leave(x + y))
        return outputs


class UsedThrice(nn.Module):
    """A weight that autocast converts on both sides of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.head = (
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.linear(x))
        outputs: torch.Tensor = self.head(self.linear(x) + self.linear(x * 0.3).tanh())
        return outputs


def picture_net() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Conv2d(8, 4, 3, padding=1)),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "dropout": dropout_net,
    "batch_norm": batch_norm_net,
    "frozen": frozen_net,
    "tied": tied_net,
    "unused": Unused,
    "branching": Branching,
}


class Langevin(torch.optim.SGD):
    """An optimizer that draws: noise on each update."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(torch.randn_like(parameter), alpha=0.01)
        return loss


def own_loss(outputs: torch.Tensor, target: torch.Tensor) -> LossResult:
    """A loss whose weight differs by sample."""
    weights = 1.0 + target.float()
    losses = nn.functional.cross_entropy(outputs, target, reduction="none")
    return (weights * losses).sum(), weights.sum()


def noisy_step(model: nn.Module, columns: Columns) -> MicroBatchResult:
    """A micro-batch function of the user's own: noise on the inputs, two losses."""
    outputs = model(columns["x"] + 0.1 * torch.randn_like(columns["x"]))
    loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
    return loss + outputs.square().sum() * 1e-3, float(len(outputs)), outputs


def make_data(*, ignored: bool) -> Dataset:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, 8)).astype(np.float32)
    y = generator.integers(0, CLASSES, ROWS)
    if ignored:
        y[::5] = -100
        return Dataset.from_arrays({"x": x, "y": y})
    return Dataset.from_arrays({"x": x, "y": y}, classes={"y": ("a", "b", "c")})


def train(
    net: Callable[[], nn.Module],
    optimizer: Callable[[Parameters], torch.optim.Optimizer],
    *,
    data: Dataset | None = None,
    micro_batch: int = MICRO_BATCH,
    global_batch: int = GLOBAL_BATCH,
    **options: Any,
) -> str:
    """One row: the digest of the weights and of every epoch's scores."""
    settings: dict[str, Any] = {"loss": nn.CrossEntropyLoss(), "clip_norm": 1.0, **options}
    trainer = distrain.Trainer(
        model=net, optimizer=optimizer, inputs="x", target="y", progress=False, **settings
    )
    data = data or make_data(ignored=False)
    history = trainer.fit(
        data, data, epochs=EPOCHS, global_batch=global_batch, micro_batch=micro_batch
    )
    scores = [dict(record.scores) for record in history.epochs]
    return f"{weights_digest(trainer.model)} {scores}"


def half_step(model: nn.Module, columns: Columns) -> MicroBatchResult:
    """A micro-batch function that computes in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(columns["x"]).float()
    loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
    return loss, float(len(outputs)), outputs


def sync_rows() -> dict[str, str]:
    """Batch norm over the whole global batch, and what it is compared with."""
    nets: dict[str, Callable[[], nn.Module]] = {
        "batch_norm": batch_norm_net,
        "cumulative": convolution_net,
        "residual": Residual,
        "recomputed": lambda: Residual(again=True),
    }
    rows = {
        f"{optimizer}-{net}": train(nets[net], OPTIMIZERS[optimizer], batch_norm="sync")
        for optimizer in ("sgd", "adamw")
        for net in nets
    }
    sgd, adam = OPTIMIZERS["sgd"], OPTIMIZERS["adam"]
    return rows | {
        "own_step": train(batch_norm_net, sgd, micro_batch_step=noisy_step, batch_norm="sync"),
        "bfloat16": train(UsedThrice, sgd, micro_batch_step=half_step, batch_norm="sync"),
        "one_sample": train(batch_norm_net, sgd, micro_batch=1, global_batch=8, batch_norm="sync"),
        "sharded": train(Residual, adam, batch_norm="sync", shard_optimizer=True),
        "no_norm": train(dropout_net, sgd, batch_norm="sync"),
        "micro-no_norm": train(dropout_net, sgd),
        "micro-residual": train(Residual, sgd),
        "micro-recomputed": train(lambda: Residual(again=True), sgd),
    }


class Planted(torch.autograd.Function):
    """Passes values on; gradients of rows whose first value is large are infinite."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(marked)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (marked,) = ctx.saved_tensors
        return torch.where(marked[:, None], torch.inf, grads[0]), None


def overflowing_step(model: nn.Module, columns: Columns) -> MicroBatchResult:
    """Three rows of the data make a gradient overflow: two steps of each epoch are skipped."""
    outputs = model(columns["x"])
    marked = columns["x"][:, 0] > LARGE
    passed = Planted.apply(outputs, marked)  # type: ignore[no-untyped-call]
    loss = nn.functional.cross_entropy(passed, columns["y"], reduction="sum")
    return loss, float(len(outputs)), outputs


def precision_rows() -> dict[str, str]:
    """Each way to compute a forward pass, the short micro-batch of an epoch's end included."""
    sgd, adam = OPTIMIZERS["sgd"], OPTIMIZERS["adamw"]
    # 44 rows in batches of 20: an epoch ends with one micro-batch of 4, where others have 5.
    short: dict[str, Any] = {"global_batch": 20, "micro_batch": 5}
    return {
        "bfloat16": train(dropout_net, adam, precision="bfloat16", **short),
        "bfloat16_lstm": train(Recurrent, adam, precision="bfloat16"),
        "float16": train(batch_norm_net, adam, precision="float16", **short),
        "overflow": train(
            batch_norm_net, adam, precision="float16", micro_batch_step=overflowing_step
        ),
        "activation_checkpointing": train(
            convolution_net, sgd, precision="bfloat16", activation_checkpointing=["[123]"]
        ),
        "channels_last": train(convolution_net, OPTIMIZERS["sgd_fused"], channels_last=True),
        "overflow_sharded": train(
            dropout_net,
            adam,
            precision="float16",
            micro_batch_step=overflowing_step,
            shard_optimizer=True,
        ),
        "channels_last_sharded": train(picture_net, adam, channels_last=True, shard_optimizer=True),
        "synchronized_half": train(
            Residual,
            adam,
            precision="bfloat16",
            batch_norm="sync",
            activation_checkpointing=["around"],
        ),
        "compiled": train(dropout_net, sgd, compile=True, **short),
        "compiled_all": train(
            picture_net,
            adam,
            compile=True,
            channels_last=True,
            precision="bfloat16",
            activation_checkpointing=["2"],
            **short,
        ),
    }


def all_rows() -> dict[str, str]:
    """Everything but synchronised batch norm."""
    rows = {
        f"{optimizer}-{net}": train(NETS[net], OPTIMIZERS[optimizer], metrics=["accuracy", "f1"])
        for optimizer in OPTIMIZERS
        for net in NETS
    }
    sgd, adam = OPTIMIZERS["sgd"], OPTIMIZERS["adam"]
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]))
    rows |= {
        "lstm": train(Recurrent, adam),
        "convolution": train(convolution_net, sgd),
        "sparse_embedding": train(Embedded, sgd),
        "weighted_ignored": train(dropout_net, sgd, data=make_data(ignored=True), loss=weighted),
        "own_loss": train(batch_norm_net, adam, loss=own_loss),
        "own_step": train(batch_norm_net, sgd, micro_batch_step=noisy_step),
        "drawing_optimizer": train(dropout_net, lambda p: Langevin(p, lr=0.1)),
        "clip_value": train(dropout_net, sgd, clip_norm=None, clip_value=0.01),
        "early_stopping": train(
            dropout_net, sgd, early_stopping=distrain.EarlyStopping("val_loss", restore_best=True)
        ),
        "schedule": train(dropout_net, sgd, schedule=distrain.schedules.Cosine(6, warmup_steps=2)),
    }
    head = [distrain.ParameterGroup("[23].*", lr=0.5, weight_decay=0.1)]
    rows |= {
        "groups": train(batch_norm_net, adam, groups=head, decay_norms_and_biases=False),
        "groups_sharded_averaged": train(
            batch_norm_net,
            OPTIMIZERS["adamax"],
            groups=head,
            decay_norms_and_biases=False,
            average=distrain.StochasticAverage(2, every_steps=1),
            shard_optimizer=True,
        ),
        "ema": train(batch_norm_net, sgd, average=distrain.ExponentialAverage(0.9)),
        "swa": train(tied_net, sgd, average=distrain.StochasticAverage(1, every_steps=2)),
        "ema_restored": train(
            batch_norm_net,
            adam,
            average=distrain.ExponentialAverage(0.75, every_steps=2, start_step=1),
            early_stopping=distrain.EarlyStopping("val_loss", mode="max", restore_best=True),
        ),
    }
    rows |= precision_rows()
    generator = np.random.default_rng(1)
    odd = Dataset.from_arrays(
        {
            "x": generator.standard_normal((ROWS, 7)).astype(np.float32),
            "y": generator.integers(0, CLASSES, ROWS),
        }
    )
    rows["odd_sizes"] = train(odd_net, sgd, data=odd, micro_batch=3, global_batch=12)
    trainer = distrain.Trainer(
        model=dropout_net, loss=weighted, optimizer=sgd, inputs="x", target="y", progress=False
    )
    rows["predict"] = str(trainer.predict(make_data(ignored=False)).tolist())
    return rows


def main(out: Path, which: str = "all") -> None:
    rows = sync_rows() if which == "sync" else all_rows()
    world = join()
    if world.rank == 0:
        out.write_text(json.dumps({"world_size": world.size, "rows": rows}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
