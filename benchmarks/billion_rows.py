"""The job of `benchmarks.resume`: a data set of 10^9 rows, and runs that stand somewhere in it."""

import json
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch._inductor  # 1.3 s, at the first call of torch.use_deterministic_algorithms
from torch import nn

from data_pipeline import Dataset
from data_pipeline.manifest import Column, Manifest, Part, write_manifest
from data_pipeline.writer import write_dataset
from distrain import Checkpoint, Trainer
from distrain.coordinator.checkpoint import CheckpointContents, read_checkpoint, write_checkpoint
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.run_layout import CHECKPOINTS, EVENTS, folder_name, steps_in
from distrain.parallel.split import BatchPlan

POSITIONS = {"after_1_percent": 0.01, "after_99_percent": 0.99}
"""Shares of the first epoch that a run has done when it goes on."""

FEATURES, CLASSES = 4, 2
MICRO_BATCHES = 4
SHORT_RUN_STEPS = 3


class EnoughError(Exception):
    """The step that was waited for is done."""


@dataclass(frozen=True)
class Size:
    """How much there is, and in what portions.

    Attributes:
        shards: Files of the data set, each of `rows_per_shard` rows.
        global_batch: Rows of a step.
    """

    shards: int
    rows_per_shard: int
    global_batch: int

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch."""
        rows = self.shards * self.rows_per_shard
        size = self.global_batch // MICRO_BATCHES
        return BatchPlan(rows, self.global_batch, size).steps_per_epoch


def write_linked(folder: Path, size: Size) -> None:
    """A data set of many shards, all of them hard links to the first."""
    random = np.random.Generator(np.random.Philox(0))
    features = random.integers(0, 256, (size.rows_per_shard, FEATURES), dtype=np.uint8)
    labels = (features.astype(np.int64).sum(axis=1) > 128 * FEATURES).astype(np.int64)
    columns = [
        Column(name="x", kind="tensor", dtype="uint8", shape=(FEATURES,)),
        Column(name="y", kind="label", dtype="int64", classes=("low", "high")),
    ]
    parts = {"train": {"x": features, "y": labels}}
    one = write_dataset(folder, "linked", columns, parts, rows_per_shard=size.rows_per_shard)
    (first,) = one.parts["train"].shards
    shards = [replace(first, path=f"train/{number:05d}.arrow") for number in range(size.shards)]
    for shard in shards[1:]:
        os.link(folder / first.path, folder / shard.path)
    write_manifest(folder, _repeated(one, Part(shards=tuple(shards)), size.shards))


def _repeated(one: Manifest, part: Part, times: int) -> Manifest:
    """The description of a part whose rows come several times: mean and deviation stay."""
    statistics = {
        name: replace(
            found,
            count=found.count * times,
            label_counts=tuple(count * times for count in found.label_counts),
        )
        for name, found in one.statistics.items()
    }
    return replace(one, parts={"train": part}, statistics=statistics)


def build_net() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def seconds_to_step(data: Path, run: Path, global_batch: int, number: int) -> float:
    """Starts the job, and ends it once it has done so many steps; the time that it took."""
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done == number:
            raise EnoughError

    def make_optimizer(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr=0.05, momentum=0.9)
        optimizer.register_step_post_hook(count)
        return optimizer

    began = time.perf_counter()
    try:
        trainer = Trainer(
            model=build_net,
            run=run,
            loss=nn.CrossEntropyLoss(),
            optimizer=make_optimizer,
            inputs="x",
            target="y",
            checkpoint=Checkpoint(every_steps=SHORT_RUN_STEPS - 1),
            progress=False,
        )
        trainer.fit(
            Dataset(data),
            epochs=1,
            global_batch=global_batch,
            micro_batch=global_batch // MICRO_BATCHES,
            verify=False,
        )
    except EnoughError:
        return time.perf_counter() - began
    raise RuntimeError(f"the epoch ended after {done} steps, and {number} were waited for")


def move_on(run: Path, template: Path, step: int, *, with_events: bool) -> None:
    """Makes `run` a copy of the run in `template` as it would stand after a later step."""
    shutil.copytree(template, run)
    (had,) = steps_in(run / CHECKPOINTS)
    found = read_checkpoint(FolderStore(run / CHECKPOINTS), had)
    state = {**found.state, "run": {**found.state["run"], "step": step}}
    write_checkpoint(FolderStore(run / CHECKPOINTS), step, CheckpointContents(found.tensors, state))
    shutil.rmtree(run / CHECKPOINTS / folder_name(had))
    if with_events:
        _extend_events(run / EVENTS, step)


def _extend_events(path: Path, last: int) -> None:
    """Repeats the line of the last step for all that follow it, up to `last`."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [event for event in lines if event["event"] != "end"]
    newest = [event for event in kept if event["event"] == "step"][-1]
    with path.open("w") as file:
        file.writelines(json.dumps(event) + "\n" for event in kept)
        for step in range(newest["step"] + 1, last + 1):
            file.write(json.dumps({**newest, "step": step}) + "\n")


def prepare(folder: Path, size: Size, *, with_events: bool) -> dict[str, Path]:
    """The data set, and by position a run's folder that goes on there."""
    write_linked(folder / "data", size)
    template = folder / "template"
    seconds_to_step(folder / "data", template, size.global_batch, SHORT_RUN_STEPS)
    runs = {}
    for name, share in POSITIONS.items():
        runs[name] = folder / name
        step = int(share * size.steps_per_epoch)
        move_on(runs[name], template, step, with_events=with_events)
    return runs
