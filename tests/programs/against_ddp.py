"""Trains one net by distrain and by DistributedDataParallel on 2 workers, over the same batches.

Usage: against_ddp.py DIGITS OUT.json
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import distrain
from data_pipeline import Dataset
from data_pipeline.order import ShuffledOrder
from distrain.micro_batch import Columns, MicroBatchResult

GLOBAL_BATCH, EPOCHS = 128, 5
LOSS = nn.CrossEntropyLoss()


def build_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


def main(digits: Path, out: Path) -> None:
    data = Dataset(digits)
    losses: list[float] = []

    def watched_step(model: nn.Module, columns: Columns) -> MicroBatchResult:
        outputs = model(columns["image"])
        loss = nn.functional.cross_entropy(outputs, columns["label"], reduction="sum")
        losses.append(loss.item())
        return loss, len(outputs), outputs

    trainer = distrain.Trainer(
        model=build_net,
        loss=LOSS,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
        inputs="image",
        target="label",
        clip_norm=1.0,
        micro_batch_step=watched_step,
        progress=False,
    )
    initial = copy.deepcopy(trainer.model)
    # One micro-batch a worker, so that its summed loss is half of the batch's.
    trainer.fit(data, epochs=EPOCHS, global_batch=GLOBAL_BATCH, micro_batch=64, last_batch="drop")
    reference, theirs = by_ddp(data, copy.deepcopy(initial))
    ours = summed(losses)
    if trainer.rank == 0:
        pairs = list(zip(trainer.model.parameters(), reference.parameters(), strict=True))
        found = {
            "world_size": trainer.world_size,
            "distrain_losses": ours,
            "ddp_losses": theirs,
            "largest_difference": max((a - b).abs().max().item() for a, b in pairs),
            "moved": max(
                (a - b).abs().max().item()
                for a, b in zip(initial.parameters(), reference.parameters(), strict=True)
            ),
        }
        out.write_text(json.dumps(found))


def summed(losses: list[float]) -> list[float]:
    """The mean loss of each step, from every worker's sums."""
    total = torch.tensor(losses)
    distributed.all_reduce(total)
    return [loss / GLOBAL_BATCH for loss in total.tolist()]


def by_ddp(data: Dataset, net: nn.Module) -> tuple[nn.Module, list[float]]:
    """The loop that people write: each rank a half of the batch, gradients averaged."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    images = np.empty((len(data), 1, 8, 8), np.uint8)
    labels = np.empty(len(data), np.int64)
    data.gather("image", np.arange(len(data)), images)
    data.gather("label", np.arange(len(data)), labels)
    x = torch.from_numpy((images - images.mean()) / images.std()).float()
    y = torch.from_numpy(labels)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses: list[float] = []
    for epoch in range(EPOCHS):
        order = ShuffledOrder(len(data), 0, epoch).rows(0, len(data))
        for start in range(0, len(data) - GLOBAL_BATCH + 1, GLOBAL_BATCH):
            share = GLOBAL_BATCH // size
            rows = torch.from_numpy(order[start + rank * share : start + (rank + 1) * share])
            loss = LOSS(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item() * share)
    return net, summed(losses)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
