"""What several contestants do to samples and batches, in the fastest form that was found for each.

Shared, so that the loaders are compared and not how well somebody crops.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.loading.task import AREA, RATIO, REACH, Batch, Epochs, Task

Images = NDArray[np.uint8]


def standardiser(task: Task) -> Callable[[torch.Tensor], torch.Tensor]:
    """Makes of uint8 `(B, 3, H, W)` or `(3, H, W)`, in any layout, standardised float32."""
    scale = torch.from_numpy(1 / task.std).view(3, 1, 1)
    offset = torch.from_numpy(-task.mean / task.std).view(3, 1, 1)

    def standardise(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.contiguous().float().mul_(scale).add_(offset)

    return standardise


def nchw(pixels: torch.Tensor) -> torch.Tensor:
    """Channels to the front; a view."""
    return pixels.permute(0, 3, 1, 2)


def padded(images: torch.Tensor) -> torch.Tensor:
    """All places `(B, 3, 9, 9, H, W)` to which A2 may move an image; views of padded images."""
    side = images.shape[-1]
    margins = torch.nn.functional.pad(images, (REACH,) * 4)
    return margins.unfold(2, side, 1).unfold(3, side, 1)


def moved(places: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of what `padded` gives, each at a random place, half of them flipped."""
    dy, dx = torch.randint(0, 2 * REACH + 1, (2, len(rows)))
    images = places[rows, :, dy, dx]
    flipped = (torch.rand(len(rows)) < 0.5).nonzero().flatten()
    images[flipped] = images[flipped].flip(-1)
    return images


def move_batch(images: torch.Tensor) -> torch.Tensor:
    """A batch `(B, 3, H, W)` for A2."""
    return moved(padded(images), torch.arange(len(images)))


def move_one(image: Images) -> Images:
    """One image `(3, H, W)` for A2."""
    side = image.shape[-1]
    dy, dx = random.randint(-REACH, REACH), random.randint(-REACH, REACH)
    new = np.zeros_like(image)
    window = image[:, max(0, dy) : side + min(0, dy), max(0, dx) : side + min(0, dx)]
    new[:, max(0, -dy) : side + min(0, -dy), max(0, -dx) : side + min(0, -dx)] = window
    return new[..., ::-1] if random.random() < 0.5 else new


def crop_box(height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop, as torchvision's RandomResizedCrop draws it."""
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(10):
        area = height * width * random.uniform(*AREA)
        ratio = math.exp(random.uniform(low, high))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            return random.randint(0, height - tall), random.randint(0, width - wide), tall, wide
    tall, wide = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - tall) // 2, (width - wide) // 2, tall, wide


def cropper(side: int) -> Callable[[Images], Images]:
    """Makes of a picture `(H, W, 3)` a random crop of the size wanted, flipped or not, by OpenCV.

    OpenCV uses no threads of its own here: the loaders have theirs.
    """
    import cv2  # noqa: PLC0415 # only who decodes needs it

    cv2.setNumThreads(1)

    def crop(picture: Images) -> Images:
        top, left, tall, wide = crop_box(*picture.shape[:2])
        part = picture[top : top + tall, left : left + wide]
        new: Any = cv2.resize(part, (side, side), interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(new[:, ::-1]) if random.random() < 0.5 else new

    return crop


def decoder(name: str) -> Callable[[bytes], Images]:
    """Makes of a JPEG's bytes a picture `(H, W, 3)`, RGB, by `simplejpeg` or `cv2`."""
    if name == "simplejpeg":
        import simplejpeg  # noqa: PLC0415 # only who decodes by it needs it

        def decode_simply(encoded: bytes) -> Images:
            picture: Images = simplejpeg.decode_jpeg(encoded, "RGB")
            return picture

        return decode_simply
    import cv2  # noqa: PLC0415 # only who decodes needs it

    cv2.setNumThreads(1)

    def decode(encoded: bytes) -> Images:
        raw = np.frombuffer(encoded, np.uint8)
        return np.asarray(cv2.imdecode(raw, cv2.IMREAD_COLOR_RGB), np.uint8)

    return decode


def pillow_crop(encoded: Any, side: int) -> Images:
    """The same as decoder and cropper by Pillow alone."""
    with Image.open(encoded) as picture:
        top, left, tall, wide = crop_box(picture.height, picture.width)
        box = (left, top, left + wide, top + tall)
        new = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
    if random.random() < 0.5:
        new = new.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(new)


def picture_batches(task: Task) -> Callable[[Sequence[bytes]], torch.Tensor]:
    """Makes of a batch's JPEGs what B wants: in one call, so that a thread does all of a batch."""
    decode, crop, standardise = decoder("simplejpeg"), cropper(task.side), standardiser(task)

    def load(encoded: Sequence[bytes]) -> torch.Tensor:
        crops = np.empty((len(encoded), task.side, task.side, 3), np.uint8)
        for place, picture in enumerate(encoded):
            crops[place] = crop(decode(picture))
        return standardise(nchw(torch.from_numpy(crops)))

    return load


def unpacker(task: Task) -> Callable[[bytes], Images]:
    """Makes of what `Task.packed` gives an image `(3, H, W)`, or of B a crop `(H, W, 3)`."""
    if task.encoded:
        decode, crop = decoder("simplejpeg"), cropper(task.side)
        return lambda packed: crop(decode(packed))
    shape = (3, task.side, task.side)
    return lambda packed: np.frombuffer(packed, np.uint8).reshape(shape)


def stack(samples: Sequence[tuple[Images, int]]) -> Batch:
    """Samples of a batch, in bytes as they are."""
    images, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def gatherer(task: Task) -> Callable[[torch.Tensor], Batch]:
    """Makes of the numbers of samples of A1 or A2 a batch, of tensors in memory."""
    images, labels = torch.from_numpy(task.images()), torch.from_numpy(task.labels())
    places = padded(images) if task.moves else images
    standardise = standardiser(task)

    def gather(rows: torch.Tensor) -> Batch:
        taken = moved(places, rows) if task.moves else places.index_select(0, rows)
        return standardise(taken), labels.index_select(0, rows)

    return gather


def finisher(task: Task) -> Callable[[Sequence[torch.Tensor]], Batch]:
    """Makes of a batch of bytes, where it arrives, the task's: moved or cropped, standardised."""
    standardise = standardiser(task)

    def finish(batch: Sequence[torch.Tensor]) -> Batch:
        images, labels = batch
        if task.encoded:
            return standardise(nchw(images)), labels
        return standardise(move_batch(images) if task.moves else images), labels

    return finish


def cut_into_epochs(batches: Iterator[Batch], task: Task) -> Epochs:
    """An endless stream of batches, which goes on across the ends of epochs, by epoch."""
    num_batches = math.ceil(task.rows / task.batch)
    while True:
        yield islice(batches, num_batches)
