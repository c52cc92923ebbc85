"""FFCV: one memory-mapped file, drawn from at random, transforms compiled by Numba.

ffcv           images as its own pictures without compression, as its examples for CIFAR have them;
               for B its writer encodes the pictures anew, at the same quality
ffcv_arrays    images of A1 as plain arrays, which its flip and its translation would not take

Both are standardised by torch, by batch, which was faster than its NormalizeImage.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ffcv.fields import IntField, NDArrayField, RGBImageField
from ffcv.fields.decoders import (
    IntDecoder,
    NDArrayDecoder,
    RandomResizedCropRGBImageDecoder,
    SimpleRGBImageDecoder,
)
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import (
    RandomHorizontalFlip,
    RandomTranslate,
    Squeeze,
    ToTensor,
    ToTorchImage,
)
from ffcv.writer import DatasetWriter
from PIL import Image

from benchmarks.loading.task import (
    AREA,
    HEIGHT,
    QUALITY,
    RATIO,
    REACH,
    WIDTH,
    Batch,
    Epochs,
    Task,
    make_once,
)
from benchmarks.loading.torch_peers import forever
from benchmarks.loading.transforms import standardiser


class _Source:
    """What its writer reads: indexed by number."""

    def __init__(self, task: Task, pictures: bool) -> None:
        self.task, self.pictures = task, pictures
        self.images = None if task.encoded else task.images(mapped=True)

    def __len__(self) -> int:
        return self.task.rows

    def __getitem__(self, row: int) -> tuple[Any, int]:
        if self.images is None:
            return np.asarray(Image.open(self.task.jpeg(row))), row
        image = np.asarray(self.images[row])
        return (np.ascontiguousarray(image.transpose(1, 2, 0)) if self.pictures else image), row


def _write(task: Task, pictures: bool, folder: Path) -> None:
    if task.encoded:
        side = max(WIDTH, HEIGHT)
        field = RGBImageField("jpg", max_resolution=side, jpeg_quality=QUALITY)
    elif pictures:
        field = RGBImageField("raw")
    else:
        field = NDArrayField(np.dtype(np.uint8), (3, 32, 32))
    fields = {"image": field, "label": IntField()}
    writer = DatasetWriter(str(folder / "data.beton"), fields, num_workers=2)
    writer.from_indexed_dataset(_Source(task, pictures), shuffle_indices=False)


def _pipeline(task: Task, pictures: bool) -> list[Any]:
    to_torch = [ToTensor(), ToTorchImage(channels_last=False)]
    if task.encoded:
        crop = RandomResizedCropRGBImageDecoder((task.side, task.side), scale=AREA, ratio=RATIO)
        return [crop, RandomHorizontalFlip(), *to_torch]
    if task.moves:
        move = RandomTranslate(padding=REACH, fill=(0, 0, 0))
        return [SimpleRGBImageDecoder(), RandomHorizontalFlip(), move, *to_torch]
    return [SimpleRGBImageDecoder(), *to_torch] if pictures else [NDArrayDecoder(), ToTensor()]


def ffcv(task: Task, folder: Path, threads: int) -> Epochs:
    return _epochs(task, folder, threads, pictures=True)


def ffcv_arrays(task: Task, folder: Path, threads: int) -> Epochs:
    return _epochs(task, folder, threads, pictures=False)


def _epochs(task: Task, folder: Path, threads: int, *, pictures: bool) -> Epochs:
    made = make_once(folder / task.name, lambda new: _write(task, pictures, new))
    loader = Loader(
        str(made / "data.beton"),
        batch_size=task.batch,
        num_workers=max(1, threads),
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        pipelines={
            "image": _pipeline(task, pictures),
            "label": [IntDecoder(), ToTensor(), Squeeze()],
        },
    )
    standardise = standardiser(task)

    def finish(batch: tuple[torch.Tensor, torch.Tensor]) -> Batch:
        images, labels = batch
        return standardise(images), labels.reshape(-1)

    yield from forever(loader, finish)
