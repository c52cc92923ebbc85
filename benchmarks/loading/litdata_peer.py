"""LitData: optimized chunks, shuffled, by its own DataLoader.

Standardised, moved and flipped is by batch, in the training process, so that workers send bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming.writer import BinaryWriter

from benchmarks.loading.task import Batch, Epochs, Task, make_once
from benchmarks.loading.torch_peers import forever, worker_options
from benchmarks.loading.transforms import cropper, decoder, move_batch, nchw, standardiser


def _write(task: Task, folder: Path) -> None:
    """Bytes as they are: its writer is what `litdata.optimize` uses, in processes of its own."""
    images = None if task.encoded else task.images(mapped=True)
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for row in range(task.rows):
        image = task.jpeg(row).read_bytes() if images is None else images[row].tobytes()
        writer.add_item(row, {"image": image, "label": row})
    writer.done()
    writer.merge()


class _Samples(StreamingDataset):  # type: ignore[misc] # mypy doesn't look into LitData
    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__(str(folder), shuffle=True)
        self.shape = (3, task.side, task.side)
        self.encoded = task.encoded
        if task.encoded:
            self.decode, self.crop = decoder("simplejpeg"), cropper(task.side)

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        sample = super().__getitem__(index)
        if self.encoded:
            return self.crop(self.decode(sample["image"])), sample["label"]
        return np.frombuffer(sample["image"], np.uint8).reshape(self.shape), sample["label"]


def stack(samples: Sequence[tuple[Any, int]]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def litdata(task: Task, folder: Path, threads: int) -> Epochs:
    made = make_once(folder, lambda new: _write(task, new))
    loader = StreamingDataLoader(
        _Samples(task, made), batch_size=task.batch, collate_fn=stack, **worker_options(threads)
    )
    standardise = standardiser(task)

    def finish(batch: Sequence[torch.Tensor]) -> Batch:
        images, labels = batch
        if task.encoded:
            return standardise(nchw(images)), labels
        return standardise(move_batch(images) if task.moves else images), labels

    yield from forever(loader, finish)
