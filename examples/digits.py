"""Digits from a script: under `python`, `torchrun` or `distrain launch`, with the same bits.

python examples/digits.py [RUN_FOLDER]
torchrun --standalone --nproc-per-node 2 examples/digits.py [RUN_FOLDER]
distrain launch --workers 4 examples/digits.py [RUN_FOLDER]
"""

import sys
from pathlib import Path

import torch

import distrain
from data_pipeline import Dataset, augment

DATA = Path("shards/digits")  # distrain data make digits shards/digits


def build_net() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.25),
        torch.nn.Linear(64 * 4 * 4, 10),
    )


def main(run: str) -> None:
    trainer = distrain.Trainer(
        model=build_net,
        run=run,
        seed=0,
        inputs="image",
        target="label",
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, nesterov=True),
        metrics=["accuracy", "f1"],
        clip_norm=1.0,
        early_stopping=distrain.EarlyStopping("val_loss", patience=5, restore_best=True),
    )
    trainer.fit(
        Dataset(DATA, "train"),
        validation=Dataset(DATA, "validation"),
        epochs=12,
        global_batch=256,
        micro_batch=32,
        augment=[augment.Shift(1)],
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/digits-script")
