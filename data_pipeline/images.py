"""Images from the bytes of their files: JPEG by libjpeg-turbo, everything else by Pillow.

A JPEG is decoded with the accurate transform and with interpolated colour: the pixels are those of
Pillow, bit for bit. Two things make it faster where only a part is needed:

- Rows below the part are not decoded. A JPEG's rows follow each other, and two bytes of its header
  say how many there are: a copy that says fewer is decoded, and what is left over is not looked at.
  No pixel of the part changes.
- An image that is at least twice as large as needed is decoded at 1/2, 1/4 or 1/8 of its size: the
  finer part of the transform is left out, and each pixel is about the mean of those that it stands
  for.

EXIF is ignored, the orientation too: a photo that was stored lying comes out lying. So are colour
profiles; transparency is dropped. The decoder releases the interpreter's lock.
"""

import io
import re
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.resample import Box

Encoded = bytes | bytearray | memoryview

REDUCTIONS = (8, 4, 2)
"""What height and width can be divided by while decoding a JPEG."""

_LEAST_REDUCED = 16
"""From this width on, no two of the decoder's scales give the same width."""

_LEFT_OVER = re.compile(r"extraneous bytes before marker 0xd9")
"""libjpeg's first complaint, when nothing but the end is odd. Where data is missing or makes no
sense, it complains of that first."""

_NUM_CHANNELS_OF_PNG = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_SPACES = {1: "GRAY", 3: "RGB"}
_MODES = {1: "L", 3: "RGB"}


class _Frame(NamedTuple):
    """What a JPEG's header says."""

    height: int
    width: int
    channels: int
    height_at: int  # where in the file the height stands
    sequential: bool  # every row is complete before the next one starts


def decode_jpeg_or_png(
    encoded: Encoded,
    channels: int = 3,
    min_size: tuple[int, int] | None = None,
    num_rows: int | None = None,
) -> NDArray[np.uint8]:
    """The image, uint8 `(H, W, channels)`: RGB or grey, whichever of them the file has.

    With `min_size` (height, width), a JPEG may come at 1/2, 1/4 or 1/8 of its size, rounded up:
    at the smallest that is no smaller than this. With `num_rows`, counted at full size, rows from
    there on may be missing. Neither changes other formats.

    Raises:
        DataError: the bytes are no whole image. A damaged part of a JPEG that still makes sense to
            the decoder isn't noticed, nor is anything that is wrong below `num_rows`.
    """
    if channels not in _SPACES:
        raise DataError(f"images have 3 channels or 1, not {channels}")
    if not _is_jpeg(encoded):
        return _decoded_by_pillow(encoded, channels)
    frame = _frame_of(encoded)
    if frame.channels not in _SPACES:  # CMYK, for which there are several conventions
        return _decoded_by_pillow(encoded, channels)
    reduction = _reduction(frame, min_size)
    if num_rows is not None and frame.sequential:
        # The colour of a row is interpolated between rows that lie up to two further on.
        num_rows = max(num_rows, 1)
        kept = num_rows + 2 * reduction
        if kept < frame.height:
            start = frame.height_at
            shortened = bytearray(encoded)
            shortened[start : start + 2] = kept.to_bytes(2, "big")
            out = _out(kept, frame.width, channels, reduction)
            if _decode(shortened, out, reduction) is None:
                return out[: -(-num_rows // reduction)]
    out = _out(frame.height, frame.width, channels, reduction)
    wrong = _decode(encoded, out, reduction)
    if wrong is not None:
        raise DataError(f"a JPEG of {len(encoded)} bytes can't be decoded: {wrong}")
    return out


def decode_box(
    encoded: Encoded, box: Box, size: tuple[int, int], channels: int = 3
) -> tuple[NDArray[np.uint8], Box]:
    """An image in which `box` is decoded, and where the box lies in it.

    `size` (height, width) is what the box is resampled to: a box that is at least twice as large
    on both sides is taken from an image decoded at a reduced size.
    """
    reduction = 1
    if _is_jpeg(encoded):
        fits = min(box.height / size[0], box.width / size[1])
        reduction = next((factor for factor in REDUCTIONS if fits >= factor), 1)
    if reduction == 1:
        num_rows = int(np.ceil(box.top + box.height))
        return decode_jpeg_or_png(encoded, channels, None, num_rows), box
    full_height, full_width, _ = encoded_size(encoded)
    least = -(-full_height // reduction), -(-full_width // reduction)
    num_rows = reduction * int(np.ceil((box.top + box.height) / reduction))
    image = decode_jpeg_or_png(encoded, channels, least, num_rows)
    if image.shape[1] != least[1]:  # CMYK comes at its full size
        return image, box
    return image, Box(*(side / reduction for side in box))


def encoded_size(encoded: Encoded) -> tuple[int, int, int]:
    """Height, width and channels as they are stored; only the header is looked at.

    Raises:
        DataError: the bytes are no image's.
    """
    if _is_jpeg(encoded):
        return _frame_of(encoded)[:3]
    if bytes(encoded[:8]) == b"\x89PNG\r\n\x1a\n" and len(encoded) >= 26:
        width, height = (int.from_bytes(encoded[at : at + 4], "big") for at in (16, 20))
        return height, width, _NUM_CHANNELS_OF_PNG.get(encoded[25], 3)
    image = _opened(encoded)
    return image.height, image.width, 3 if image.mode == "P" else len(image.getbands())


def _is_jpeg(encoded: Encoded) -> bool:
    return bytes(encoded[:3]) == b"\xff\xd8\xff"


def _frame_of(encoded: Encoded) -> _Frame:
    """Walks from segment to segment up to the pixels."""
    at, end = 2, len(encoded)
    found: tuple[int, int, int, int, int] | None = None
    while at + 4 <= end and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        length = encoded[at + 2] << 8 | encoded[at + 3]
        if marker == 0xDA and found is not None and at + 4 < end:
            height, width, channels, height_at, kind = found
            # Only then does one scan hold all channels, row after row.
            sequential = kind in (0xC0, 0xC1) and encoded[at + 4] == channels
            return _Frame(height, width, channels, height_at, sequential)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and at + 10 <= end:
            height = encoded[at + 5] << 8 | encoded[at + 6]
            width = encoded[at + 7] << 8 | encoded[at + 8]
            found = height, width, encoded[at + 9], at + 5, marker
        at += 2 + length
    raise DataError(f"a JPEG of {end} bytes ends, or makes no sense, within its header")


def _reduction(frame: _Frame, min_size: tuple[int, int] | None) -> int:
    if min_size is None or frame.width < _LEAST_REDUCED:
        return 1
    for factor in REDUCTIONS:
        height, width = -(-frame.height // factor), -(-frame.width // factor)
        if height >= min_size[0] and width >= min_size[1]:
            return factor
    return 1


def _out(height: int, width: int, channels: int, reduction: int) -> NDArray[np.uint8]:
    return np.empty((-(-height // reduction), -(-width // reduction), channels), np.uint8)


def _decode(encoded: Encoded, out: NDArray[np.uint8], reduction: int) -> str | None:
    """Fills `out`, the image at 1 / `reduction` of its size; returns what is wrong, if anything."""
    height, width, channels = out.shape
    least = (height, width) if reduction > 1 else (0, 0)  # 0: at full size
    decode = _jpeg_library().decode_jpeg
    try:
        decode(encoded, _SPACES[channels], min_height=least[0], min_width=least[1], buffer=out)
    except ValueError as error:
        # Complaints come when everything that could be decoded has been.
        wrong = str(error)
        return None if _LEFT_OVER.search(wrong) else wrong
    return None


def _decoded_by_pillow(encoded: Encoded, channels: int) -> NDArray[np.uint8]:
    image = _opened(encoded)
    try:
        if image.mode.startswith("I;16"):  # 16 bits, of which Pillow would cut the upper ones off
            grey = (np.asarray(image) >> 8).astype(np.uint8)
            return np.repeat(grey[:, :, None], channels, axis=2)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # or Pillow would print a warning
        pixels = np.array(image.convert(_MODES[channels]), dtype=np.uint8)
    except _PILLOW_ERRORS as error:
        raise DataError(f"an image of {len(encoded)} bytes can't be decoded: {error}") from error
    return pixels.reshape(image.height, image.width, channels)


_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError)
"""What Pillow is known to raise for files that are damaged."""


def _opened(encoded: Encoded) -> Any:
    if not len(encoded):
        raise DataError("an image of 0 bytes can't be decoded")
    library = _pillow()
    try:
        return library.open(io.BytesIO(encoded))
    except (*_PILLOW_ERRORS, library.DecompressionBombError) as error:
        start = bytes(encoded[:8]).hex(" ")
        raise DataError(
            f"{len(encoded)} bytes that start with {start} are no image that Pillow can read: "
            f"{error}"
        ) from error


@cache
def _jpeg_library() -> ModuleType:
    try:
        return import_module("simplejpeg")
    except ImportError as error:
        raise _missing("simplejpeg") from error


@cache
def _pillow() -> ModuleType:
    try:
        return import_module("PIL.Image")
    except ImportError as error:
        raise _missing("Pillow") from error


def _missing(name: str) -> DataError:
    return DataError(f"{name} is not installed, which reads images: pip install 'distrain[images]'")
