"""SPDL: a pipeline of threads; batches are gathered, or pictures decoded by simplejpeg."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spdl.pipeline import PipelineBuilder

from benchmarks.loading.task import Batch, Epochs, Task
from benchmarks.loading.transforms import (
    cropper,
    decoder,
    moved,
    nchw,
    padded,
    standardiser,
)


def _by_batch(task: Task) -> Callable[[torch.Tensor], Batch]:
    """What a thread does with the numbers of a batch's samples in A1 and A2."""
    images, labels = torch.from_numpy(task.images()), torch.from_numpy(task.labels())
    places = padded(images) if task.moves else images
    standardise = standardiser(task)

    def gather(rows: torch.Tensor) -> Batch:
        taken = moved(places, rows) if task.moves else places.index_select(0, rows)
        return standardise(taken), labels.index_select(0, rows)

    return gather


def _pictures(task: Task) -> Callable[[int], tuple[Any, int]]:
    decode, crop = decoder("simplejpeg"), cropper(task.side)
    return lambda row: (crop(decode(task.jpeg(row).read_bytes())), row)


def _stacker(task: Task) -> Callable[[Sequence[tuple[Any, int]]], Batch]:
    standardise = standardiser(task)

    def stack(samples: Sequence[tuple[Any, int]]) -> Batch:
        crops, labels = zip(*samples, strict=True)
        return standardise(nchw(torch.from_numpy(np.stack(crops)))), torch.tensor(labels)

    return stack


def spdl(task: Task, _: Path, threads: int) -> Epochs:
    threads = max(1, threads)
    torch.set_num_threads(1)  # the pipeline has its own
    load = _pictures(task) if task.encoded else _by_batch(task)
    stack = _stacker(task)

    def epoch() -> Iterator[Batch]:
        order: Any = torch.randperm(task.rows)
        builder: Any = PipelineBuilder().add_source(
            order.tolist() if task.encoded else order.split(task.batch)
        )
        builder.pipe(load, concurrency=threads)
        if task.encoded:
            builder.aggregate(task.batch).pipe(stack)
        pipeline = builder.add_sink(2).build(num_threads=threads + int(task.encoded))
        with pipeline.auto_stop():
            yield from pipeline

    while True:
        yield epoch()
