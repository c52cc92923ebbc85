"""The run that faults happen to: digits, a small net with batch norm and dropout, 3 workers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipeline import Dataset
from data_pipeline.manifest import Column
from data_pipeline.shards import Values
from data_pipeline.sources.bundled import make_bundled
from data_pipeline.writer import write_dataset
from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, Completed
from tests.started import Started

EPOCHS, STEPS_PER_EPOCH = 10, 6
STEPS = EPOCHS * STEPS_PER_EPOCH
CHECKPOINT_EVERY = 4

JOB = """\
[data]
path = "{digits}"
inputs = "image"
target = "label"

[data.augment.shift]
pixels = 1

[model]
build = "fault_points:build"

[optimizer]
lr = 0.05
momentum = 0.9

[schedule]
name = "cosine"
warmup_steps = 6

[training]
epochs = {epochs}
global_batch = 256
micro_batch = 32
clip_norm = 1.0
metrics = ["accuracy"]

[checkpoint]
every_steps = {checkpoint_every}
"""

SHARDED = "sharded optimizer"

VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "batch norm by the whole batch": ("--training.batch-norm", "sync"),
    SHARDED: ("--parallel.shard-optimizer",),
    "average of the weights": ("--average.name", "ema", "--average.decay", "0.9"),
    "the best epoch's weights": (
        *("--early-stopping.monitor", "val_loss", "--early-stopping.patience", "50"),
        *("--early-stopping.restore-best", "--checkpoint.keep-best", "1"),
    ),
}
"""Ways to train that keep other state; a fault meets one of them, drawn."""


def start(
    variant: str,
    digits: Path,
    run: Path,
    points: Path,
    *options: object,
    environment: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Started:
    """Starts `distrain train`; `points` is the folder of `programs/fault_points.py`."""
    arguments = _command(variant, digits, run, points)
    variables = {"FAULT_POINTS": str(points), **(environment or {})}
    return Started(*arguments, *options, cwd=PROGRAMS, environment=variables, within=within)


def train_alone(variant: str, digits: Path, run: Path, points: Path) -> Completed:
    """Has one worker train to the end."""
    arguments = (*_command(variant, digits, run, points), "--workers", 1)
    return distrain_alone(*arguments, cwd=PROGRAMS, environment={"FAULT_POINTS": str(points)})


def _command(variant: str, digits: Path, run: Path, points: Path) -> Sequence[object]:
    points.mkdir(parents=True, exist_ok=True)
    job = points / "job.toml"
    job.write_text(JOB.format(digits=digits, epochs=EPOCHS, checkpoint_every=CHECKPOINT_EVERY))
    return ("train", job, "--run.dir", run, *VARIANTS[variant])


def digits_with_rows(folder: Path) -> Path:
    """The digits data set with a column more: each row's own number."""
    plain, numbered = folder / "plain", folder / "numbered"
    make_bundled("digits", plain)
    parts: dict[str, dict[str, Values]] = {}
    for part in ("train", "validation"):
        data = Dataset(plain, part)
        rows = np.arange(data.num_rows)
        image = np.empty((data.num_rows, 1, 8, 8), np.uint8)
        label = np.empty(data.num_rows, np.int64)
        data.gather("image", rows, image)
        data.gather("label", rows, label)
        parts[part] = {"image": image, "label": label, "row": rows}
    columns = (*data.columns.values(), Column(name="row", kind="number", dtype="int64"))
    write_dataset(numbered, "digits", columns, parts, rows_per_shard=500)
    return numbered
