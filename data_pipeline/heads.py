"""From the memory map to an array: the first stage of each column of a batch.

Where it can, a head does the first transforms and the scaling in the same pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import Cropping
from data_pipeline.augment.windows import Flip, Shift
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.images import decode_box, encoded_size
from data_pipeline.resample import Box, resample
from data_pipeline.standardize import Standardization


@dataclass(frozen=True)
class Span:
    """The positions [start, stop) of an epoch; `start == stop` is a batch without samples."""

    epoch: int
    start: int
    stop: int


class Head(Protocol):
    """Fills an array with the rows of one column."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a row as it comes out."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype that comes out."""
        ...

    def fill(self, rows: NDArray[np.int64], span: Span, out: NDArray[Any]) -> None:
        """Writes the rows at the span's positions to `out` `(B, *shape)`."""
        ...


@dataclass(frozen=True)
class Gathering:
    """Rows of a fixed shape, as they are stored or scaled."""

    dataset: Dataset
    name: str
    scaling: Standardization | None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the column."""
        return self.dataset.column(self.name).shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the column, or float32."""
        return np.dtype(self.dataset.column(self.name).dtype if self.scaling is None else "float32")

    def fill(self, rows: NDArray[np.int64], span: Span, out: NDArray[Any]) -> None:  # noqa: ARG002
        """Gathers, and scales on the way."""
        if self.scaling is None:
            self.dataset.gather(self.name, rows, out)
            return
        self.scaling.gather(self.dataset.blocks(self.name, rows), rows, out)


@dataclass(frozen=True)
class Windows:
    """Images moved by whole pixels, mirrored and scaled in one pass."""

    dataset: Dataset
    name: str
    scaling: Standardization
    seed: int
    shift: tuple[int, Shift] | None
    flip: tuple[int, Flip] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the column."""
        return self.dataset.column(self.name).shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """What scaling gives."""
        return np.dtype("float32")

    def fill(self, rows: NDArray[np.int64], span: Span, out: NDArray[Any]) -> None:
        """Draws what the transforms would draw, and copies once."""
        count, channels = len(rows), self.shape[0]
        down = right = np.zeros(count, np.int64)
        mirrored, fill = np.zeros(count, np.bool_), 0.0
        if self.shift is not None:
            place, shift = self.shift
            down, right = shift.offsets(Draw(self.seed, span.epoch, place, span.start, count))
            fill = shift.fill
        if self.flip is not None:
            place, flip = self.flip
            draw = Draw(self.seed, span.epoch, place, span.start, count)
            mirrored = draw.happens(flip.probability)
        scale = np.broadcast_to(self.scaling.scale, channels).copy()
        offset = np.broadcast_to(self.scaling.offset, channels).copy()
        blocks = self.dataset.blocks(self.name, rows)
        blocks.window(rows, down, right, mirrored, fill, scale, offset, out)


@dataclass(frozen=True)
class Crops:
    """Encoded pictures: decoded, a box of each cut out, resized, mirrored and maybe scaled."""

    dataset: Dataset
    name: str
    scaling: Standardization | None
    seed: int
    cropping: tuple[int, Cropping]
    flip: tuple[int, Flip] | None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(C, H, W)`."""
        return (*self.dataset.column(self.name).shape, *self.cropping[1].size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Bytes as decoded, or float32."""
        return np.dtype("uint8" if self.scaling is None else "float32")

    def fill(self, rows: NDArray[np.int64], span: Span, out: NDArray[Any]) -> None:
        """Draws what the transforms would draw; decodes at a reduced size where that is enough."""
        count, channels = len(rows), self.shape[0]
        place, cropping = self.cropping
        mirrored = np.zeros(count, np.bool_)
        pictures = self.dataset.encoded(self.name, rows)
        sizes = np.empty((count, 2), np.int64)
        for number, row in enumerate(rows):
            with self._naming(row):
                sizes[number] = encoded_size(pictures[number])[:2]
        draw = Draw(self.seed, span.epoch, place, span.start, count)
        boxes = cropping.boxes(sizes[:, 0], sizes[:, 1], draw)
        if self.flip is not None:
            place, flip = self.flip
            draw = Draw(self.seed, span.epoch, place, span.start, count)
            mirrored = draw.happens(flip.probability)
        scale, offset = self._by_channel(channels)
        for number, row in enumerate(rows):
            with self._naming(row):
                box = Box(*boxes[number].tolist())
                image, part = decode_box(pictures[number], box, cropping.size, channels)
            mirror = bool(mirrored[number])
            resample(image, part, out[number], mirrored=mirror, scale=scale, offset=offset)

    @contextmanager
    def _naming(self, row: np.int64) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{self.dataset.name}: row {row}: {error}") from error

    def _by_channel(
        self, channels: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
        if self.scaling is None:
            return None, None
        scale, offset = self.scaling.scale, self.scaling.offset
        return np.broadcast_to(scale, channels).copy(), np.broadcast_to(offset, channels).copy()


@dataclass(frozen=True)
class Padding:
    """Sequences and texts, padded with zeros to one length; they know how long each is."""

    dataset: Dataset
    name: str
    scaling: Standardization | None
    steps: int

    @property
    def shape(self) -> tuple[int, ...]:
        """`(T, *step)`."""
        return (self.steps, *self.dataset.column(self.name).shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the column, or float32."""
        return np.dtype(self.dataset.column(self.name).dtype if self.scaling is None else "float32")

    def fill(self, rows: NDArray[np.int64], span: Span, out: NDArray[Any]) -> None:  # noqa: ARG002
        """Pads; what stands behind a row stays 0 when it is scaled."""
        lengths = np.empty(len(rows), np.int64)
        if self.scaling is None:
            self.dataset.gather_padded(self.name, rows, out, lengths)
            return
        raw = np.empty(out.shape, self.dataset.column(self.name).dtype)
        self.dataset.gather_padded(self.name, rows, raw, lengths)
        self.scaling.apply(raw, out)
        clear_padding(out, lengths)


@dataclass(frozen=True)
class Lengths:
    """How many steps of each row of a sequence or text are no padding."""

    dataset: Dataset
    name: str
    steps: int
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("int64"))

    def fill(self, rows: NDArray[np.int64], span: Span, out: NDArray[Any]) -> None:  # noqa: ARG002
        """Reads the offsets alone."""
        for block, local, places in self.dataset.ragged(self.name, rows):
            lengths = block.offsets[local + 1] - block.offsets[local]
            out[places] = np.minimum(lengths, self.steps)


def clear_padding(padded: NDArray[Any], lengths: NDArray[np.int64]) -> None:
    """Sets what stands behind each row of `(B, T, ...)` to 0."""
    for row, length in zip(padded, lengths, strict=True):
        row[length:] = 0
