"""The tasks that all contestants do, the data that they do it on, and the check of what they give.

A sample's label is its number in the data, of which a class would be the last digit: no loader is
slower for it, and the check can tell which samples came, how often, and from which picture.
"""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images `(B, 3, H, W)`, standardised float32, contiguous, and labels `(B,)`, int64."""

Epochs = Iterator[Iterable[Batch]]
"""One epoch after another, without end, each in another order."""

Contestant = Callable[["Task", Path, int], Epochs]
"""From a task, a folder for the data in the library's own format, and the workers or threads."""

ROWS = {"A1": 50_000, "A2": 50_000, "B": 3_000}
BATCH = {"A1": 256, "A2": 256, "B": 64}
SIDE = {"A1": 32, "A2": 32, "B": 160}
WIDTH, HEIGHT, QUALITY = 320, 240, 90
REACH = 4
"""Pixels by which A2 moves an image at most."""

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""What B crops: share of the picture's area, and width by height."""


@dataclass(frozen=True)
class Task:
    """What is to be loaded, and how.

    Attributes:
        name: A1 (images as they are), A2 (moved and flipped) or B (JPEGs, cropped and flipped).
        folder: Of the data as `make_data` leaves them.
        rows: Samples of an epoch.
    """

    name: str
    folder: Path
    rows: int

    @property
    def batch(self) -> int:
        """Samples of a batch; the last of an epoch may have fewer."""
        return BATCH[self.name]

    @property
    def side(self) -> int:
        """Height and width of what comes out."""
        return SIDE[self.name]

    @property
    def moves(self) -> bool:
        """Whether images are moved and flipped."""
        return self.name == "A2"

    @property
    def encoded(self) -> bool:
        """Whether the data are JPEGs."""
        return self.name == "B"

    @cached_property
    def _statistics(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = json.loads((self.folder / "statistics.json").read_text())
        return found

    @property
    def mean(self) -> NDArray[np.float32]:
        """By channel, of pixels from 0 to 255."""
        return np.array(self._statistics["mean"], np.float32)

    @property
    def std(self) -> NDArray[np.float32]:
        """By channel, of pixels from 0 to 255."""
        return np.array(self._statistics["std"], np.float32)

    def images(self, *, mapped: bool = False) -> NDArray[np.uint8]:
        """All images `(N, 3, 32, 32)` of A1 and A2, in memory or mapped into it."""
        path = self.folder / "images.npy"
        images: NDArray[np.uint8] = np.load(path, mmap_mode="r" if mapped else None)
        return images

    def labels(self) -> NDArray[np.int64]:
        """All labels, in the order of the data."""
        return np.arange(self.rows, dtype=np.int64)

    def jpeg(self, row: int) -> Path:
        """The file of one picture of B."""
        return self.folder / f"{row // 1000:03d}" / f"{row:06d}.jpg"

    @cached_property
    def _mapped(self) -> NDArray[np.uint8]:
        return self.images(mapped=True)

    def packed(self, row: int) -> bytes:
        """One sample: its JPEG, or the bytes of its image."""
        return self.jpeg(row).read_bytes() if self.encoded else self._mapped[row].tobytes()


def _smooth(random: np.random.Generator, count: int, side: int) -> NDArray[np.uint8]:
    """Images `(count, 3, side, side)`: a coarse random pattern, drawn out, and mild noise."""
    coarse = random.uniform(0, 255, (count, 3, 4, 4)).astype(np.float32)
    at = np.linspace(0, 3, side, dtype=np.float32)
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(4, dtype=np.float32)))
    drawn = weights @ coarse @ weights.T
    drawn += random.normal(0, 8, drawn.shape).astype(np.float32)
    images: NDArray[np.uint8] = np.clip(drawn, 0, 255).astype(np.uint8)
    return images


def photo(row: int) -> Image.Image:
    """A picture as a camera might take it: gradients, some shapes with edges, mild noise."""
    random = np.random.Generator(np.random.Philox(row))
    base = random.uniform(40, 215, 3)
    coarse = np.clip(base + random.normal(0, 35, (4, 5, 3)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = random.uniform(-40, WIDTH), random.uniform(-40, HEIGHT)
        wide, high = random.uniform(10, 110, 2)
        red, green, blue = (int(value) for value in random.uniform(0, 255, 3))
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x, y, x + wide, y + high), fill=(red, green, blue))
    noisy = np.asarray(picture) + random.normal(0, 4, (HEIGHT, WIDTH, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _write_images(folder: Path, rows: int) -> NDArray[np.uint8]:
    random = np.random.Generator(np.random.Philox(0))
    parts = [_smooth(random, min(5_000, rows - at), 32) for at in range(0, rows, 5_000)]
    images = np.concatenate(parts)
    np.save(folder / "images.npy", images)
    return images


def _write_jpegs(folder: Path, task: Task) -> NDArray[np.uint8]:
    some = []
    for row in range(task.rows):
        path = task.jpeg(row)
        path = folder / path.relative_to(task.folder)
        path.parent.mkdir(exist_ok=True)
        picture, buffer = photo(row), io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY, subsampling="4:2:0")
        path.write_bytes(buffer.getvalue())
        if row < 200:
            some.append(np.asarray(picture).transpose(2, 0, 1))
    return np.stack(some)


def make_data(cache: Path, name: str, rows: int) -> Task:
    """The task on its data, which are made if they are not there; the same on every machine."""
    task = Task(name, cache / f"{'jpegs' if name == 'B' else 'images'}-{rows}" / "source", rows)
    if task.folder.exists():
        return task
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=task.folder.parent))
    pixels = _write_jpegs(unfinished, task) if task.encoded else _write_images(unfinished, rows)
    statistics = {
        "mean": [float(value) for value in pixels.mean((0, 2, 3))],
        "std": [float(value) for value in pixels.std((0, 2, 3))],
    }
    (unfinished / "statistics.json").write_text(json.dumps(statistics))
    unfinished.rename(task.folder)
    return task


def make_once(folder: Path, write: Callable[[Path], None]) -> Path:
    """A contestant's data in its own format; `write` gets a folder, which is empty, only once."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}-{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write(unfinished)
        unfinished.rename(folder)
    return folder
