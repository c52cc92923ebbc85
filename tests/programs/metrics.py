"""Trains a little, evaluates and predicts on some workers, for a comparison with scikit-learn.

Usage: metrics.py DIGITS OUT.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchmetrics
from torch import nn

import distrain
from data_pipeline import Dataset


def build_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


class Samples(torchmetrics.Metric):
    """Counts: merged over workers that have each seen all, it would be a multiple."""

    def __init__(self) -> None:
        super().__init__()
        self.count = torch.tensor(0)
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: torch.Tensor, target: torch.Tensor) -> None:
        assert len(outputs) == len(target)
        self.count += len(target)

    def compute(self) -> torch.Tensor:
        return self.count


def main(digits: Path, out: Path) -> None:
    validation = Dataset(digits, "validation")
    trainer = distrain.Trainer(
        model=build_net,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05),
        inputs="image",
        target="label",
        metrics=[
            *("accuracy", "f1", "f1_micro", "precision", "recall", "roc_auc", "top_3"),
            *("confusion", distrain.TorchMetric("samples", Samples)),
        ],
        progress=False,
    )
    history = trainer.fit(Dataset(digits), validation, epochs=1, global_batch=256)
    scores = trainer.evaluate(validation)
    outputs = trainer.predict(validation)
    if trainer.rank == 0:
        labels = np.empty(len(validation), np.int64)
        validation.gather("label", np.arange(len(validation)), labels)
        last = history.epochs[-1].scores
        found = {
            "world_size": trainer.world_size,
            "scores": scores,
            "confusion": [] if scores.confusion is None else scores.confusion.tolist(),
            "fit_scores": {name: last[name] for name in last if name.startswith("val_")},
            "outputs": outputs.tolist(),
            "labels": labels.tolist(),
        }
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
