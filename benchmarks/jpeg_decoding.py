"""From a JPEG's bytes to a random crop, resized, mirrored and normalised: what is fastest?

Measured are decoders (microseconds an image on 1 thread, images a second on several), and the whole
way: decode, take a random box (8 to 100% of the area, sides 3:4 to 4:3), resize it to a square,
mirror every second one, and normalise to float32 `(3, H, W)`. The contestants take turns in each
round, after one that is not counted; those that are not installed are left out, and that is said.
Beside the clock's figures stands the processor time an image, which says what a machine could do
that has nothing else to do.

The photos are drawn: gradients, shapes and mild noise, quality 85 to 90, colour at half resolution;
some 22 kB each at 320 x 240. Whether the results are right is measured too: the mean difference to
Pillow's decode and bilinear resize of the box, which smooths where it shrinks, in levels of 255.

    pip install simplejpeg opencv-python-headless
    python -m benchmarks.jpeg_decoding [--images 3000] [--rounds 7] [--height 240] [--width 320]
                                       [--size 160] [--threads 2] [--out FILE.json]
"""

import argparse
import importlib.util
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.conditions import conditions, spread
from data_pipeline.images import decode_box, decode_jpeg_or_png
from data_pipeline.resample import Box, resample

MEAN = np.array([123.675, 116.28, 103.53], dtype=np.float32)
SCALE = np.float32(1) / np.array([58.395, 57.12, 57.375], dtype=np.float32)
OFFSET = -MEAN * SCALE
ON_ONE_THREAD = 500  # images, of all
COMPARED = 50
SLICES = 20  # of the images, for the threads to take one after the other

Decode = Callable[[bytes], object]


@dataclass(frozen=True)
class Task:
    """What every contestant is given."""

    photos: Sequence[bytes]
    boxes: Sequence[Box]
    size: int
    out: NDArray[np.float32]  # (N, 3, size, size)


def photo(number: int, height: int, width: int) -> bytes:
    """A JPEG, the same for the same number."""
    draws = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width]
    canvas = np.empty((height, width, 3))
    for channel in range(3):
        a, b, c, d = draws.uniform(-1, 1, 4)
        waves = 30 * np.sin((c * x + d * y) / 20)
        canvas[..., channel] = 128 + 50 * (a * x / width + b * y / height) + waves
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        left, top = draws.uniform(-20, width), draws.uniform(-20, height)
        right, bottom = np.array([left, top]) + draws.uniform(5, 80, 2)
        colour = tuple(int(level) for level in draws.integers(0, 256, 3))
        shape = draw.ellipse if draws.integers(2) else draw.rectangle
        shape([left, top, right, bottom], fill=colour)
    noisy = np.asarray(image) + draws.normal(0, draws.uniform(3, 8), (height, width, 1))
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(draws.integers(85, 91)), subsampling=2)
    return file.getvalue()


def random_box(draws: np.random.Generator, height: int, width: int) -> Box:
    """As RandomResizedCrop of torchvision draws it."""
    while True:
        area = draws.uniform(0.08, 1) * height * width
        ratio = np.exp(draws.uniform(np.log(3 / 4), np.log(4 / 3)))
        box_height, box_width = round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = (
                draws.integers(height - box_height + 1),
                draws.integers(width - box_width + 1),
            )
            return Box(float(top), float(left), float(box_height), float(box_width))


def decoders(height: int, width: int) -> dict[str, Decode]:
    """What turns bytes into pixels, by name, as far as it is installed."""

    def by_pillow(photo: bytes) -> object:
        return np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))

    def by_pillow_at_half(photo: bytes) -> object:
        image = Image.open(io.BytesIO(photo))
        image.draft("RGB", (width // 2, height // 2))
        return np.asarray(image.convert("RGB"))

    found: dict[str, Decode] = {
        "distrain": decode_jpeg_or_png,
        "distrain, first 3/4 of rows": lambda photo: decode_jpeg_or_png(
            photo, num_rows=height * 3 // 4
        ),
        "Pillow": by_pillow,
        "Pillow, half size": by_pillow_at_half,
    }
    if installed("simplejpeg"):
        decode = import_module("simplejpeg").decode_jpeg
        half = {"min_height": -(-height // 2), "min_width": -(-width // 2)}
        found |= {
            "simplejpeg": decode,
            "simplejpeg, fast transform": lambda photo: decode(photo, fastdct=True),
            "simplejpeg, fast colour": lambda photo: decode(photo, fastupsample=True),
            "simplejpeg, both": lambda photo: decode(photo, fastdct=True, fastupsample=True),
            "simplejpeg, grey": lambda photo: decode(photo, "GRAY"),
            "simplejpeg, half size": lambda photo: decode(photo, **half),
        }
    if installed("cv2"):
        cv2 = import_module("cv2")
        cv2.setNumThreads(0)
        found |= {
            "OpenCV": lambda photo: cv2.imdecode(
                np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR_RGB
            ),
            "OpenCV, half size": lambda photo: cv2.imdecode(
                np.frombuffer(photo, np.uint8), cv2.IMREAD_REDUCED_COLOR_2
            ),
        }
    return found


def whole_ways(task: Task) -> dict[str, Callable[[int], None]]:
    """What fills the output of one image, by name, as far as it is installed."""

    def ours(number: int) -> None:
        side = task.size
        image, box = decode_box(task.photos[number], task.boxes[number], (side, side))
        fill(image, box, number)

    def ours_all_rows(number: int) -> None:
        fill(decode_jpeg_or_png(task.photos[number]), task.boxes[number], number)

    def fill(image: NDArray[np.uint8], box: Box, number: int) -> None:
        mirrored = bool(number % 2)
        resample(image, box, task.out[number], mirrored=mirrored, scale=SCALE, offset=OFFSET)

    def normalise(resized: NDArray[np.uint8], number: int) -> None:
        if number % 2:
            resized = resized[:, ::-1]
        out = task.out[number]
        np.multiply(resized.transpose(2, 0, 1), SCALE[:, None, None], out=out)
        np.add(out, OFFSET[:, None, None], out=out)

    def by_pillow(number: int) -> None:
        normalise(resized_by_pillow(task, number), number)

    found: dict[str, Callable[[int], None]] = {
        "distrain": ours,
        "distrain, all rows": ours_all_rows,
        "Pillow, NumPy": by_pillow,
    }
    if installed("cv2"):
        cv2 = import_module("cv2")
        cv2.setNumThreads(0)

        def by_opencv(number: int) -> None:
            encoded = np.frombuffer(task.photos[number], np.uint8)
            top, left, height, width = map(int, task.boxes[number])
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
            part = image[top : top + height, left : left + width]
            normalise(cv2.resize(part, (task.size, task.size)), number)

        found["OpenCV, NumPy"] = by_opencv
    return found


def resized_by_pillow(task: Task, number: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(task.photos[number])).convert("RGB")
    top, left, height, width = task.boxes[number]
    edges = (left, top, left + width, top + height)
    side = (task.size, task.size)
    return np.asarray(image.resize(side, Image.Resampling.BILINEAR, box=edges))


def difference(task: Task, way: Callable[[int], None]) -> float:
    """Mean difference to Pillow's, in levels, over some images."""
    found = []
    for number in range(min(COMPARED, len(task.photos))):
        way(number)
        expected = resized_by_pillow(task, number).astype(np.float32).transpose(2, 0, 1)
        if number % 2:
            expected = expected[..., ::-1]
        levels = (task.out[number] - OFFSET[:, None, None]) / SCALE[:, None, None]
        found.append(float(np.abs(levels - expected).mean()))
    return float(np.mean(found))


def decoding_of(task: Task, decode: Decode) -> Callable[[int], object]:
    return lambda number: decode(task.photos[number])


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def microseconds(do: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        do(number)
    return (time.perf_counter() - start) / count * 1e6


def on_threads(
    do: Callable[[int], object], count: int, pool: ThreadPoolExecutor
) -> tuple[float, float]:
    """Images a second by the clock, and microseconds of processor time an image."""

    def take(numbers: range) -> None:
        for number in numbers:
            do(number)

    start, busy = time.perf_counter(), time.process_time()
    list(pool.map(take, [range(first, count, SLICES) for first in range(SLICES)]))
    busy = time.process_time() - busy
    return count / (time.perf_counter() - start), busy / count * 1e6


def measure(
    ways: Mapping[str, Callable[[int], object]], count: int, rounds: int, threads: int
) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {
        name: {
            "microseconds_on_1_thread": [],
            f"images_per_second_on_{threads}_threads": [],
            f"processor_microseconds_on_{threads}_threads": [],
        }
        for name in ways
    }
    with ThreadPoolExecutor(threads) as pool:
        for number in range(rounds + 1):
            for name, do in ways.items():
                alone = microseconds(do, min(count, ON_ONE_THREAD))
                together = on_threads(do, count, pool)
                if number:
                    for values, value in zip(found[name].values(), (alone, *together), strict=True):
                        values.append(value)
    return found


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, figures in measured.items():
        alone, together, busy = (value for value in figures.values() if isinstance(value, dict))
        lines.append(
            f"{name:30}{alone['median']:8.0f} us{together['median']:9.0f} images/s "
            f"({together['min']:.0f} to {together['max']:.0f}){busy['median']:8.0f} us of processor"
        )
    return "\n".join(lines)


def report(task: Task, known: argparse.Namespace) -> dict[str, object]:
    ways = whole_ways(task)
    decoding = {
        name: decoding_of(task, decode)
        for name, decode in decoders(known.height, known.width).items()
    }
    count = len(task.photos)
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    contests: dict[str, Mapping[str, Callable[[int], object]]] = {
        "decode": decoding,
        "whole_way": ways,
    }
    for part, contestants in contests.items():
        measured = measure(contestants, count, known.rounds, known.threads)
        parts[part] = {
            name: {kind: dict(spread(values, 1)) for kind, values in kinds.items()}
            for name, kinds in measured.items()
        }
    for name, way in ways.items():
        parts["whole_way"][name]["mean_difference_to_pillow"] = round(difference(task, way), 3)
    optional = {"simplejpeg": "simplejpeg", "cv2": "opencv-python-headless"}
    packages = [package for module, package in optional.items() if installed(module)]
    sizes = [len(photo) for photo in task.photos]
    return {
        "config": {
            "images": count,
            "height": known.height,
            "width": known.width,
            "size": known.size,
            "threads": known.threads,
            "rounds": known.rounds,
            "mean_bytes_per_image": round(sum(sizes) / count),
            "not_installed": [
                package for module, package in optional.items() if not installed(module)
            ],
        },
        **parts,
        **conditions(["numba", "numpy", "pillow", *packages]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if min(known.images, known.rounds, known.height, known.width, known.size, known.threads) < 1:
        parser.error("every number must be 1 or more")
    draws = np.random.default_rng(0)
    task = Task(
        [photo(number, known.height, known.width) for number in range(known.images)],
        [random_box(draws, known.height, known.width) for _ in range(known.images)],
        known.size,
        np.empty((known.images, 3, known.size, known.size), dtype=np.float32),
    )
    found = report(task, known)
    for part in ("decode", "whole_way"):
        measured = found[part]
        if isinstance(measured, dict):
            print(f"{part}\n{table(measured)}")
    text = json.dumps(found, indent=2)
    print(text)
    if known.out is not None:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
