"""Pictures as sources give them: encoded ones checked, or pixels of one size `(C, H, W)`."""

import importlib
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.images import decode_jpeg_or_png, encoded_size
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")
"""Files called so are pictures, whatever they hold."""

_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def is_picture(file: Path) -> bool:
    """Whether a file is called like a JPEG or PNG, or begins like one."""
    if file.suffix.lower() in SUFFIXES:
        return True
    try:
        with file.open("rb") as handle:
            return handle.read(8).startswith(_STARTS)
    except OSError:
        return False


def picture_column(name: str, channels: int, size: tuple[int, int] | None) -> Column:
    """Encoded pictures without a size, tensors `(C, H, W)` of uint8 with one.

    Raises:
        DataError: the size has a side below 1, or what reads pictures is not installed.
    """
    _check_library()
    if size is None:
        return Column(name=name, kind="image", dtype="uint8", shape=(channels,))
    _check_size(size)
    return Column(name=name, kind="tensor", dtype="uint8", shape=(channels, *size))


def common_channels(pictures: Iterable[bytes]) -> int:
    """1 if all of them are grey, else 3; the first coloured one ends the search.

    Those that cannot be read have no say.
    """
    any_grey = False
    for encoded in pictures:
        try:
            channels = encoded_size(encoded)[2]
        except DataError:
            continue
        if channels > 2:  # 2 are grey and transparency
            return 3
        any_grey = True
    return 1 if any_grey else 3


def read_pictures(
    encoded: Sequence[bytes | DataError], origins: Sequence[str], column: Column
) -> tuple[Values, list[int], list[str]]:
    """Every picture decoded once, and kept as the column says; an error stands for a missing one.

    Returns:
        The pictures that can be read; their numbers in `encoded`; what is wrong with the others.
    """
    kept: list[int] = []
    contents: list[bytes] = []
    bad: list[str] = []
    pixels: list[NDArray[np.uint8]] = []
    for number, (content, origin) in enumerate(zip(encoded, origins, strict=True)):
        try:
            if isinstance(content, DataError):
                raise content
            if not content.startswith(_STARTS):
                raise DataError("it is neither JPEG nor PNG; convert it, or take it out")
            decoded = decode_jpeg_or_png(content, column.shape[0])
        except DataError as error:
            bad.append(f"{origin}: {error}")
            continue
        kept.append(number)
        if column.kind == "tensor":
            pixels.append(_resized(decoded, column.shape[1:]))
        else:
            contents.append(content)
    if column.kind == "image":
        return Ragged.of_bytes(contents), kept, bad
    out = np.empty((len(pixels), *column.shape), np.uint8)
    for row, picture in zip(out, pixels, strict=True):
        row[:] = picture.transpose(2, 0, 1)
    return out, kept, bad


def array_column(
    name: str, dtype: str, shape: Sequence[int], size: tuple[int, int] | None
) -> Column:
    """Arrays `(H, W)` or `(H, W, C)` as tensors `(C, H, W)`, of another size where one is given.

    Raises:
        DataError: they are no pictures, or a size is given for other pixels than those of uint8.
    """
    if len(shape) not in (2, 3) or 0 in shape:
        raise DataError(
            f"column {name!r} holds arrays of shape {tuple(shape)}: pictures are (H, W) or "
            "(H, W, C)"
        )
    channels = shape[2] if len(shape) == 3 else 1
    if size is None:
        return Column(name=name, kind="tensor", dtype=dtype, shape=(channels, *shape[:2]))
    _check_size(size)
    if dtype != "uint8":
        raise DataError(
            f"column {name!r} holds pictures of {dtype}: only those of uint8 can be resized; "
            "leave the size out, or convert them to uint8"
        )
    return Column(name=name, kind="tensor", dtype=dtype, shape=(channels, *size))


def read_arrays(arrays: NDArray[Any], column: Column) -> NDArray[Any]:
    """`(N, H, W)` or `(N, H, W, C)` as the column says, `(N, C, H', W')`."""
    pixels = arrays[..., None] if arrays.ndim == 3 else arrays
    if pixels.shape[1:3] == column.shape[1:]:
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    out = np.empty((len(pixels), *column.shape), column.dtype)
    for row, picture in zip(out, pixels, strict=True):
        # Channel by channel, since there may be any number of them.
        for channel in range(len(row)):
            row[channel] = _resized(picture[..., channel : channel + 1], column.shape[1:])[..., 0]
    return out


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise DataError(f"the size of pictures is {size}: height and width must be 1 or more")


def _check_library() -> None:
    for module in ("PIL", "simplejpeg"):
        if importlib.util.find_spec(module) is None:
            raise DataError(
                f"{module} reads pictures and is not installed: pip install 'distrain[images]'"
            )


def _resized(pixels: NDArray[np.uint8], size: Sequence[int]) -> NDArray[np.uint8]:
    """`(H, W, C)` as `(H', W', C)`, bilinear with antialiasing."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    _check_library()
    image_module = importlib.import_module("PIL.Image")
    flat = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    height, width = size
    resized = image_module.fromarray(flat).resize((width, height), image_module.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8).reshape(height, width, pixels.shape[2])
