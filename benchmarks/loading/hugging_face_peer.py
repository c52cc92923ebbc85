"""Hugging Face datasets: Arrow files mapped into memory, indexed by batch.

An image is a list of bytes of fixed length, which its own Arrow format hands over without a copy
a row; its format for NumPy makes an object of each row, and takes several times as long.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, Value, load_from_disk
from datasets import Sequence as Fixed
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from benchmarks.loading.task import Batch, Epochs, Task, make_once
from benchmarks.loading.torch_peers import forever, worker_options
from benchmarks.loading.transforms import finisher, move_batch, standardiser, unpacker


def _write(task: Task, folder: Path) -> None:
    if task.encoded:
        image = Value("binary")
        pictures = [task.jpeg(row).read_bytes() for row in range(task.rows)]
        column = pa.array(pictures, pa.binary())
    else:
        flat = task.images().reshape(-1)
        image = Fixed(Value("uint8"), length=3 * task.side**2)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat), 3 * task.side**2)
    table = pa.table({"image": column, "label": task.labels()})
    features = Features({"image": image, "label": Value("int64")})
    Dataset(pa.table(table.columns, schema=features.arrow_schema)).save_to_disk(str(folder))


class _Batches:
    """Picklable, so that workers can be started; a batch is one index."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task = task
        self.data: Any = load_from_disk(str(folder)).with_format("arrow")
        self.standardise, self.unpack = standardiser(task), unpacker(task)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        table = self.data[rows]
        images, labels = table["image"].combine_chunks(), table["label"].to_numpy()
        if self.task.encoded:
            crops = [self.unpack(encoded.as_py()) for encoded in images]
            return torch.from_numpy(np.stack(crops)), torch.from_numpy(labels)
        flat = images.flatten().to_numpy().reshape(-1, 3, self.task.side, self.task.side)
        pixels = torch.from_numpy(flat)
        done = self.standardise(move_batch(pixels) if self.task.moves else pixels)
        return done, torch.from_numpy(labels)


def hugging_face(task: Task, folder: Path, threads: int) -> Epochs:
    made = make_once(folder, lambda new: _write(task, new))
    sampler = BatchSampler(RandomSampler(range(task.rows)), task.batch, drop_last=False)
    dataset: Any = _Batches(task, made)
    loader = DataLoader(dataset, batch_size=None, sampler=sampler, **worker_options(threads))
    yield from forever(loader, finisher(task) if task.encoded else None)
