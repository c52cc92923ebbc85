"""Real files for sources, written by the libraries that own the formats."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray
from PIL import Image

datasets.disable_progress_bars()


def png(seed: int, height: int = 5, width: int = 4, mode: str = "RGB") -> bytes:
    channels = {"L": (), "RGB": (3,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def saved(path: Path, rows: list[Any], features: dict[str, Any], **options: Any) -> Path:
    data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    data.save_to_disk(path, **options)
    return path


def one(path: Path, values: list[Any], feature: Any) -> Path:
    return saved(path, [{"a": value} for value in values], {"a": feature})


def write_arrays(path: Path, kind: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """A .npz, uncompressed or compressed, or a folder of .npy files."""
    if kind == "folder":
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / name, array)
        return path
    file = path.with_suffix(".npz")
    save: Any = np.savez if kind == "stored" else np.savez_compressed
    save(file, **arrays)
    return file
