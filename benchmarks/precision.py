"""What each way to compute a forward pass costs: time of a step, and memory kept for gradients.

One worker trains a small convolutional net with batch norm; rounds of some steps in each way are
interleaved. The time is the processor's, which other work on the machine disturbs less; compiling
is off the clock, and stated.

    python -m benchmarks.precision [--rounds 7] [--steps 3] [--size 32] [--out FILE.json]
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import distrain
from benchmarks.conditions import conditions, ratios, spread
from data_pipeline import Dataset
from distrain.learn.loss_scale import LossScale
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.split import GlobalBatch

CHANNELS, CLASSES, GLOBAL_BATCH, MICRO_BATCH = 32, 10, 32, 16

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "activation_checkpointing": {"activation_checkpointing": ["[1234]"]},
    "channels_last": {"channels_last": True},
    "compile": {"compile": True},
    "bfloat16, channels_last": {"precision": "bfloat16", "channels_last": True},
    "bfloat16, compile": {"precision": "bfloat16", "compile": True},
}


def build_net() -> nn.Module:
    """Five blocks of a convolution, batch norm and ReLU; then a mean and a linear layer."""
    blocks = [
        nn.Sequential(
            nn.Conv2d(before, CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
        )
        for before in (3, *[CHANNELS] * 4)
    ]
    return nn.Sequential(
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, CLASSES)
    )


class Way:
    """A trainer that computes in one way, step by step.

    Attributes:
        first_step_s: Seconds of the first step, in which a model is compiled.
    """

    def __init__(self, data: Dataset, options: Mapping[str, Any]) -> None:
        """Does the first step."""
        self.kept: dict[int, int] | None = None
        self._trainer = distrain.Trainer(
            model=build_net,
            loss=nn.CrossEntropyLoss(),
            optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
            inputs="x",
            target="y",
            micro_batch_step=self._run,
            progress=False,
            **options,
        )
        self._parts = self._trainer.assemble(
            data, global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, verify=False
        )
        self._columns = {
            "x": torch.randn(GLOBAL_BATCH, *data.column("x").shape),
            "y": torch.randint(CLASSES, (GLOBAL_BATCH,)),
        }
        self._scale: LossScale | None = None
        self._trainer.model.train()
        began = time.perf_counter()
        self.seconds(1)
        self.first_step_s = time.perf_counter() - began

    def _run(self, model: nn.Module, columns: Columns) -> MicroBatchResult:
        if self.kept is None:
            outputs = model(columns["x"])
        else:
            self.kept.clear()  # of the last micro-batch alone
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                outputs = model(columns["x"])
        loss = nn.functional.cross_entropy(outputs.float(), columns["y"], reduction="sum")
        return loss, float(len(outputs)), outputs

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self.kept is not None
        storage = tensor.untyped_storage()
        self.kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def seconds(self, num_steps: int) -> float:
        """The processor's time for a step, over so many."""
        began = time.process_time()
        for number in range(num_steps):
            batch = GlobalBatch(number, 0, 0, GLOBAL_BATCH, MICRO_BATCH)
            self._scale = self._parts.step(batch, self._columns, loss_scale=self._scale).loss_scale
        return (time.process_time() - began) / num_steps

    def kept_bytes(self) -> int:
        """Bytes that a micro-batch's forward pass keeps for gradients, weights among them."""
        self.kept = {}
        self.seconds(1)
        return sum(self.kept.values())


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all ways, and says what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--size", type=int, default=32, help="height and width of a picture")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(argv)
    shape = (GLOBAL_BATCH, 3, known.size, known.size)
    data = Dataset.from_arrays(
        {"x": np.zeros(shape, dtype=np.float32), "y": np.zeros(GLOBAL_BATCH, dtype=np.int64)}
    )
    ways = {name: Way(data, WAYS[name]) for name in known.ways}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(known.rounds):
        for name, way in ways.items():
            found[name].append(way.seconds(known.steps))
    report = {
        "step_s": {name: spread(seconds, 4) for name, seconds in found.items()},
        "step_ratio_to_float32": {
            name: spread(ratios(seconds, found["float32"])) for name, seconds in found.items()
        },
        "first_step_s": {name: round(way.first_step_s, 3) for name, way in ways.items()},
        "kept_bytes": {name: way.kept_bytes() for name, way in ways.items()},
        "config": {
            "channels": CHANNELS,
            "size": known.size,
            "global_batch": GLOBAL_BATCH,
            "micro_batch": MICRO_BATCH,
            "steps_a_round": known.steps,
            "clock": "time of the processor",
        },
        **conditions(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if known.out:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
