"""Trains one net by a sharded distrain and by DDP with ZeroRedundancyOptimizer, the same batches.

Usage: against_zero.py OUT.json
"""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

import distrain
from data_pipeline import Dataset
from data_pipeline.order import ShuffledOrder

ROWS, GLOBAL_BATCH, EPOCHS, LR = 192, 32, 3, 0.01


def build_net() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 150), nn.Tanh(), nn.Linear(150, 90), nn.Linear(90, 4))


def main(out: Path) -> None:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, 12)).astype(np.float32)
    y = generator.integers(0, 4, ROWS)
    trainer = distrain.Trainer(
        model=build_net,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.AdamW(params, lr=LR),
        inputs="x",
        target="y",
        standardize=False,
        shard_optimizer=True,
        progress=False,
    )
    initial = copy.deepcopy(trainer.model)
    data = Dataset.from_arrays({"x": x, "y": y})
    trainer.fit(data, epochs=EPOCHS, global_batch=GLOBAL_BATCH, micro_batch=8)
    rank, size = distributed.get_rank(), distributed.get_world_size()
    net = copy.deepcopy(initial)
    model = DistributedDataParallel(net)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=LR)
    share = GLOBAL_BATCH // size
    for epoch in range(EPOCHS):
        order = ShuffledOrder(ROWS, 0, epoch).rows(0, ROWS)
        for start in range(0, ROWS, GLOBAL_BATCH):
            rows = order[start + rank * share : start + (rank + 1) * share]
            loss = nn.functional.cross_entropy(
                model(torch.from_numpy(x[rows])), torch.from_numpy(y[rows])
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    if rank == 0:
        found = {
            "differs": largest(trainer.model, net),
            "moved": largest(initial, net),
        }
        out.write_text(json.dumps(found))


def largest(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
