"""SPDL: a pipeline of threads; batches are gathered, or pictures decoded by simplejpeg."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from spdl.pipeline import PipelineBuilder

from benchmarks.loading.task import Batch, Epochs, Task
from benchmarks.loading.transforms import cut_into_epochs, gatherer, picture_batches


def _pictures(task: Task) -> Callable[[torch.Tensor], Batch]:
    load = picture_batches(task)

    def take(rows: torch.Tensor) -> Batch:
        return load([task.jpeg(row).read_bytes() for row in rows.tolist()]), rows

    return take


def spdl(task: Task, _: Path, threads: int) -> Epochs:
    threads = max(1, threads)
    torch.set_num_threads(1)  # the pipeline has its own

    def batches() -> Iterator[torch.Tensor]:
        while True:
            order: Any = torch.randperm(task.rows)
            yield from order.split(task.batch)

    take = _pictures(task) if task.encoded else gatherer(task)
    builder: Any = PipelineBuilder().add_source(batches()).pipe(take, concurrency=threads)
    pipeline = builder.add_sink(2).build(num_threads=threads)
    with pipeline.auto_stop():
        yield from cut_into_epochs(iter(pipeline), task)
