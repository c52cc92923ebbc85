"""Proof that a contestant does its task: one epoch of its batches is looked at, untimed."""

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.loading.task import REACH, Batch, Epochs, Task

PICTURES = 128
"""Samples whose picture is compared with that of the data."""


class WrongBatchError(Exception):
    """What a contestant gives is not what its task asks for."""


def check(task: Task, epochs: Epochs, *, complete: bool) -> None:
    """Looks at the first epoch, and at the beginning of the second.

    Args:
        task: What was to be done.
        epochs: Of the contestant; two are begun.
        complete: Whether each sample must come exactly once an epoch. If not, up to a batch a
            worker, of 8 at most, may be missing or come twice.

    Raises:
        WrongBatchError: shapes, dtypes, samples, order, values or pictures are wrong.
    """
    seen: list[int] = []
    sums = np.zeros((3, 3))
    first: list[Batch] = []
    for images, labels in next(epochs):
        _check_form(task, images, labels)
        seen += labels.tolist()
        pixels = images.double()
        sums += [
            [images.shape[0] * task.side**2] * 3,
            pixels.sum((0, 2, 3)).tolist(),
            pixels.square().sum((0, 2, 3)).tolist(),
        ]
        if len(first) * task.batch < PICTURES:
            first.append((images.clone(), labels.clone()))
    _check_samples(task, seen, complete=complete)
    _check_moments(task, sums)
    images = torch.cat([images for images, _ in first])[:PICTURES]
    (_check_crops if task.encoded else _check_pictures)(task, images.numpy(), seen[:PICTURES])
    again = [label for _, labels in islice(next(epochs), 2) for label in labels.tolist()]
    if again == seen[: len(again)] or again == sorted(again):
        raise WrongBatchError("the second epoch has the order of the first, or of the data")


def _check_form(task: Task, images: torch.Tensor, labels: torch.Tensor) -> None:
    rows = len(labels)
    if not 0 < rows <= task.batch or images.shape != (rows, 3, task.side, task.side):
        raise WrongBatchError(f"a batch has images {tuple(images.shape)} and {rows} labels")
    if images.dtype != torch.float32 or labels.dtype != torch.int64 or labels.ndim != 1:
        raise WrongBatchError(f"a batch has images {images.dtype} and labels {labels.dtype}")
    if not images.is_contiguous():
        raise WrongBatchError(f"a batch has strides {images.stride()}")


def _check_samples(task: Task, seen: Sequence[int], *, complete: bool) -> None:
    missing, more = task.rows - len(set(seen)), len(seen) - len(set(seen))
    allowed = 0 if complete else 8 * task.batch
    if missing > allowed or more > allowed:
        raise WrongBatchError(f"of {task.rows} samples, {missing} did not come, {more} came twice")
    if task.rows > task.batch and sorted(seen[: task.batch]) == list(range(task.batch)):
        raise WrongBatchError("the first batch has the first samples of the data: not shuffled")


def _check_moments(task: Task, sums: NDArray[np.float64]) -> None:
    """Near 0 and 1; A2 has margins, whose zeros lie 2 deviations off, and B parts of pictures."""
    count, total, squares = sums
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    near = {"A1": 0.02, "A2": 0.5, "B": 0.35}[task.name]
    if np.abs(mean).max() > near or np.abs(std - 1).max() > near:
        raise WrongBatchError(f"by channel, mean {mean.round(3)} and deviation {std.round(3)}")


def _check_pictures(task: Task, images: NDArray[np.float32], rows: Sequence[int]) -> None:
    """Each image must be the one of its label; in A2, moved and flipped in one of all ways."""
    mean, std = task.mean[:, None, None], task.std[:, None, None]
    source = task.images(mapped=True)
    reach = REACH if task.moves else 0
    found = set()
    for image, row in zip(images, rows, strict=True):
        pixels = source[row].astype(np.float32)
        ways = {}
        for fill in {0.0, 1.0} if task.moves else {0.0}:  # zeros before it is standardised or after
            margin = ((0, 0), (reach, reach), (reach, reach))
            padded = np.pad(pixels - fill * mean, margin) + fill * mean
            for dy in range(2 * reach + 1):
                for dx in range(2 * reach + 1):
                    window = padded[:, dy : dy + task.side, dx : dx + task.side]
                    ways[dy, dx, False, fill] = window
                    if task.moves:
                        ways[dy, dx, True, fill] = window[..., ::-1]
        same = [
            way
            for way, window in ways.items()
            if np.abs((window - mean) / std - image).max() < 2e-3
        ]
        if not same:
            raise WrongBatchError(f"the image of sample {row} is not that of the data")
        found.add(same[0][:3])
    few = min(20, len(rows) // 4)
    if task.moves and (len(found) < few or len({flipped for *_, flipped in found}) < 2):
        raise WrongBatchError(f"{len(rows)} images were moved and flipped in {len(found)} ways")


def _check_crops(task: Task, images: NDArray[np.float32], rows: Sequence[int]) -> None:
    """Crops can be found nowhere for certain, but their colours go with those of the pictures."""
    theirs = images.mean((2, 3)) * task.std + task.mean
    sources = [np.asarray(Image.open(task.jpeg(row))).mean((0, 1)) for row in rows]
    alike = np.corrcoef(theirs.ravel(), np.stack(sources).ravel())[0, 1]
    if not alike > 0.6:
        raise WrongBatchError(f"the crops' colours are not those of the pictures: {alike:.2f}")
