"""WebDataset: tar files read in a stream, shuffled within a buffer, by DataLoader's workers.

Standardised, moved and flipped is by batch, in the training process, so that workers send bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds

from benchmarks.loading.task import Batch, Epochs, Task, make_once
from benchmarks.loading.torch_peers import forever, worker_options
from benchmarks.loading.transforms import cropper, decoder, move_batch, nchw, standardiser

SHARDS = 8


def _write(task: Task, folder: Path) -> None:
    images = None if task.encoded else task.images(mapped=True)
    for shard in range(SHARDS):
        with wds.TarWriter(str(folder / f"{shard:03d}.tar")) as tar:
            for row in range(shard, task.rows, SHARDS):
                one: dict[str, Any] = {"__key__": f"{row:06d}", "label.cls": row}
                if images is None:
                    one["image.jpg"] = task.jpeg(row).read_bytes()
                else:
                    one["image.bin"] = images[row].tobytes()
                tar.write(one)


def webdataset(task: Task, folder: Path, threads: int) -> Epochs:
    made = make_once(folder, lambda new: _write(task, new))
    shape = (3, task.side, task.side)
    if task.encoded:
        decode, crop = decoder("simplejpeg"), cropper(task.side)

    def take(sample: dict[str, bytes]) -> tuple[Any, int]:
        if task.encoded:
            return crop(decode(sample["image.jpg"])), int(sample["label.cls"])
        return np.frombuffer(sample["image.bin"], np.uint8).reshape(shape), int(sample["label.cls"])

    def stack(samples: Sequence[tuple[Any, int]]) -> Batch:
        images, labels = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(images)), torch.tensor(labels)

    urls = [str(path) for path in sorted(made.glob("*.tar"))]
    dataset = (
        wds.WebDataset(urls, shardshuffle=SHARDS, workersplitter=wds.split_by_worker)
        .shuffle(1_000)
        .map(take)
        .batched(task.batch, collation_fn=stack)
    )
    loader = wds.WebLoader(dataset, batch_size=None, **worker_options(threads, ahead=4))
    standardise = standardiser(task)

    def finish(batch: Sequence[torch.Tensor]) -> Batch:
        images, labels = batch
        if task.encoded:
            return standardise(nchw(images)), labels
        return standardise(move_batch(images) if task.moves else images), labels

    yield from forever(loader, finish)
