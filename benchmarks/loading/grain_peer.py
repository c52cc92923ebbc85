"""Grain: numbers shuffled and batched, then gathered by batch; for B pictures in an ArrayRecord.

Its threads read ahead; worker processes are not used, since the batches' way through shared memory
costs more than they bring on 2 cores.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from array_record.python.array_record_module import ArrayRecordWriter
from grain import python as grain_python

from benchmarks.loading.task import Batch, Epochs, Task, make_once
from benchmarks.loading.transforms import cut_into_epochs, gatherer, picture_batches


def _write(task: Task, folder: Path) -> None:
    writer = ArrayRecordWriter(str(folder / "data.array_record"), "group_size:1")
    for row in range(task.rows):
        writer.write(row.to_bytes(8, "little") + task.jpeg(row).read_bytes())
    writer.close()


def _by_batch(task: Task) -> Callable[[Any], Batch]:
    gather = gatherer(task)
    return lambda numbers: gather(torch.from_numpy(np.asarray(numbers)))


def _pictures(task: Task, folder: Path) -> Callable[[Any], Batch]:
    made = make_once(folder, lambda new: _write(task, new))
    source = grain_python.ArrayRecordDataSource([str(made / "data.array_record")])
    load = picture_batches(task)

    def take(numbers: Any) -> Batch:
        records = source.__getitems__(np.asarray(numbers).tolist())
        labels = [int.from_bytes(record[:8], "little") for record in records]
        return load([record[8:] for record in records]), torch.tensor(labels)

    return take


def grain(task: Task, folder: Path, threads: int) -> Epochs:
    torch.set_num_threads(1)  # the threads are grain's
    take = _pictures(task, folder) if task.encoded else _by_batch(task)
    reading = grain_python.ReadOptions(
        num_threads=threads, prefetch_buffer_size=8 if threads else 0
    )
    numbers = grain_python.MapDataset.range(task.rows).shuffle(seed=random.getrandbits(31))
    batches = numbers.batch(task.batch).repeat().map(take)
    yield from cut_into_epochs(iter(batches.to_iter_dataset(reading)), task)
