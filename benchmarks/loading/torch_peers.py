"""Tensors in memory, and torch's DataLoader in the ways in which it is used.

in_ram              index_select with a permutation, then plain torch operations by batch
loader_batches      DataLoader whose sampler gives batches: the data set is indexed by a list
loader_collate      DataLoader that collates samples; standardised, moved, flipped by batch
loader_samples      DataLoader that collates samples which were transformed one by one
loader_cv2, loader_simplejpeg, loader_pillow
                    DataLoader over files, by the library that decodes; the crops are
                    standardised by batch, so that workers send bytes and no floats
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from benchmarks.loading.task import Batch, Epochs, Task
from benchmarks.loading.transforms import (
    Images,
    cropper,
    decoder,
    finisher,
    gatherer,
    move_one,
    moved,
    padded,
    pillow_crop,
    standardiser,
)


def forever(loader: Iterable[Any], finish: Callable[[Any], Batch] | None = None) -> Epochs:
    """Epoch after epoch of what can be iterated again, each batch finished where it arrives."""
    while True:
        yield loader if finish is None else map(finish, loader)


def worker_options(threads: int, ahead: int = 2) -> dict[str, Any]:
    """What a DataLoader with that many worker processes is given besides."""
    if not threads:
        return {"num_workers": 0}
    return {"num_workers": threads, "persistent_workers": True, "prefetch_factor": ahead}


def in_ram(task: Task, _: Path, threads: int) -> Epochs:
    if threads:
        torch.set_num_threads(threads)
    gather = gatherer(task)
    while True:
        order: Any = torch.randperm(task.rows)
        yield map(gather, order.split(task.batch))


class _Batches(Dataset[Batch]):
    """Indexed by a list, so that a batch is gathered at once."""

    def __init__(self, task: Task) -> None:
        self.images = torch.from_numpy(task.images())
        self.labels = torch.from_numpy(task.labels())
        self.places = padded(self.images) if task.moves else None
        self.standardise = standardiser(task)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        index = torch.tensor(rows)
        taken = self.images[index] if self.places is None else moved(self.places, index)
        return self.standardise(taken), self.labels[index]


def loader_batches(task: Task, _: Path, threads: int) -> Epochs:
    sampler = BatchSampler(RandomSampler(range(task.rows)), task.batch, drop_last=False)
    options = worker_options(threads)
    # With batch_size=None, each item of the sampler, here a list, is one index.
    yield from forever(DataLoader(_Batches(task), batch_size=None, sampler=sampler, **options))


class _Samples(Dataset[tuple[Any, int]]):
    """One sample at a time, transformed or as it is."""

    def __init__(self, task: Task, transform: Callable[[Images], Any]) -> None:
        self.images, self.labels = list(task.images()), task.labels().tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return self.transform(self.images[row]), self.labels[row]


def loader_collate(task: Task, _: Path, threads: int) -> Epochs:
    dataset, options = _Samples(task, torch.from_numpy), worker_options(threads)
    yield from forever(DataLoader(dataset, task.batch, shuffle=True, **options), finisher(task))


def loader_samples(task: Task, _: Path, threads: int) -> Epochs:
    scale, offset = 1 / task.std[:, None, None], (-task.mean / task.std)[:, None, None]

    def transform(image: Images) -> torch.Tensor:
        pixels = (move_one(image) if task.moves else image) * scale
        return torch.from_numpy(np.add(pixels, offset, out=pixels))

    options = worker_options(threads)
    loader = DataLoader(_Samples(task, transform), task.batch, shuffle=True, **options)
    yield from forever(loader, tuple)


class _Pictures(Dataset[tuple[torch.Tensor, int]]):
    """Files of B, decoded and cropped one by one, as `(H, W, 3)` of uint8."""

    def __init__(self, task: Task, load: Callable[[Path], Images]) -> None:
        self.paths = [task.jpeg(row) for row in range(task.rows)]
        self.load = load

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.load(self.paths[row])), row


def _from_files(task: Task, load: Callable[[Path], Images], threads: int) -> Epochs:
    dataset, options = _Pictures(task, load), worker_options(threads)
    yield from forever(DataLoader(dataset, task.batch, shuffle=True, **options), finisher(task))


def loader_cv2(task: Task, _: Path, threads: int) -> Epochs:
    decode, crop = decoder("cv2"), cropper(task.side)
    return _from_files(task, lambda path: crop(decode(path.read_bytes())), threads)


def loader_simplejpeg(task: Task, _: Path, threads: int) -> Epochs:
    decode, crop = decoder("simplejpeg"), cropper(task.side)
    return _from_files(task, lambda path: crop(decode(path.read_bytes())), threads)


def loader_pillow(task: Task, _: Path, threads: int) -> Epochs:
    return _from_files(task, lambda path: pillow_crop(path, task.side), threads)
