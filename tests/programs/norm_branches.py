"""Synchronised batch norm whose micro-batches part. Usage: norm_branches.py branch|exception"""

import sys

import numpy as np
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.micro_batch import Columns, MicroBatchResult


class Branch(nn.Module):
    """Only micro-batches whose first value is below 8 take the second norm."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.sometimes = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.always(x)
        outputs: torch.Tensor = self.head(self.sometimes(x) if x[0, 0] < 0 else x)
        return outputs


def failing(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = model.get_submodule("head")(model.get_submodule("always")(columns["x"]))
    if 15.0 in columns["x"]:
        raise RuntimeError("bad luck with row 15")
    loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
    return loss, float(len(outputs)), outputs


def main(which: str) -> None:
    x = np.arange(16, dtype=np.float32)[:, None].repeat(2, 1)
    data = Dataset.from_arrays({"x": x, "y": np.arange(16) % 2}, classes={"y": ("a", "b")})
    trainer = distrain.Trainer(
        model=Branch,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        inputs="x",
        target="y",
        standardize=False,
        batch_norm="sync",
        progress=False,
        micro_batch_step=failing if which == "exception" else None,
    )
    trainer.fit(data, epochs=1, global_batch=16, micro_batch=2, last_batch="drop")


if __name__ == "__main__":
    main(sys.argv[1])
