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
from benchmarks.loading.transforms import cropper, decoder, moved, nchw, padded, standardiser


def _write(task: Task, folder: Path) -> None:
    writer = ArrayRecordWriter(str(folder / "data.array_record"), "group_size:1")
    for row in range(task.rows):
        writer.write(row.to_bytes(8, "little") + task.jpeg(row).read_bytes())
    writer.close()


def _by_batch(task: Task) -> Callable[[Any], Batch]:
    images, labels = torch.from_numpy(task.images()), torch.from_numpy(task.labels())
    places = padded(images) if task.moves else images
    standardise = standardiser(task)

    def gather(numbers: Any) -> Batch:
        rows = torch.from_numpy(np.asarray(numbers))
        taken = moved(places, rows) if task.moves else places.index_select(0, rows)
        return standardise(taken), labels.index_select(0, rows)

    return gather


def _reading(threads: int, ahead: int) -> Any:
    return grain_python.ReadOptions(
        num_threads=threads, prefetch_buffer_size=ahead if threads else 0
    )


def _numbers(task: Task, threads: int) -> Epochs:
    """A1 and A2: their batches are gathered from memory."""
    gather, ahead = _by_batch(task), _reading(threads, 8)
    while True:
        numbers = grain_python.MapDataset.range(task.rows).shuffle(seed=random.getrandbits(31))
        yield numbers.batch(task.batch).map(gather).to_iter_dataset(ahead)


def grain(task: Task, folder: Path, threads: int) -> Epochs:
    if not task.encoded:
        yield from _numbers(task, threads)
    made = make_once(folder, lambda new: _write(task, new))
    source = grain_python.ArrayRecordDataSource([str(made / "data.array_record")])
    decode, crop = decoder("simplejpeg"), cropper(task.side)
    standardise = standardiser(task)

    def take(record: bytes) -> tuple[Any, int]:
        return crop(decode(record[8:])), int.from_bytes(record[:8], "little")

    def finish(batch: Any) -> Batch:
        crops, labels = batch
        return standardise(nchw(torch.from_numpy(crops))), torch.from_numpy(labels)

    ahead = _reading(threads, 2 * task.batch)
    pictures = grain_python.MapDataset.source(source)
    while True:
        shuffled = pictures.shuffle(seed=random.getrandbits(31)).map(take)
        yield map(finish, shuffled.to_iter_dataset(ahead).batch(task.batch))
