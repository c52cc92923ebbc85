"""Trains with a sharded optimizer or without, some steps of a run or all; rank 0 says how it went.

Usage: sharded.py DIGITS FOLDER OUT.json sharded|plain [STEPS]
"""

import json
import math
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import distributed, nn

import distrain
from data_pipeline import Dataset
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.optimizer_state import optimizer_tensors
from distrain.parallel.replicas import weights_digest
from distrain.parallel.split import owned_range

MICRO_BATCHES = 8


class PowerCutError(Exception):
    """Ends a run in mid-step."""


def build_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))


def main(digits: Path, folder: Path, out: Path, way: str, steps: int | None) -> None:
    left = math.inf  # a name that the function binds anew is no part of a run's identity

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        nonlocal left
        left -= model.training
        if left < 0:
            raise PowerCutError
        outputs = model(columns["image"])
        loss = nn.functional.cross_entropy(outputs, columns["label"], reduction="sum")
        return loss, len(outputs), outputs

    trainer = distrain.Trainer(
        model=build_net,
        run=folder,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.NAdam(params, lr=0.002),
        inputs="image",
        target="label",
        micro_batch_step=run,
        shard_optimizer=way == "sharded",
        checkpoint=distrain.Checkpoint(every_steps=3, every_seconds=None),
        progress=False,
    )
    if steps is not None:  # cut off on all workers in the same step
        left = steps * len(owned_range(MICRO_BATCHES, trainer.rank, trainer.world_size))
    with suppress(PowerCutError):
        trainer.fit(
            Dataset(digits),
            epochs=2,
            global_batch=256,
            micro_batch=256 // MICRO_BATCHES,
            last_batch="drop",
        )
    assert trainer.optimizer is not None
    tensors, _ = optimizer_tensors(trainer.optimizer)
    mine = torch.tensor([sum(tensor.nbytes for tensor in tensors.values())])
    held = [torch.zeros_like(mine) for _ in range(trainer.world_size)]
    if trainer.world_size > 1:
        distributed.all_gather(held, mine)
    else:
        held = [mine]
    if trainer.rank == 0:
        digest = weights_digest(trainer.model)
        out.write_text(json.dumps({"digest": digest, "held": [int(one) for one in held]}))


if __name__ == "__main__":
    steps = int(sys.argv[5]) if len(sys.argv) > 5 else None
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], steps)
