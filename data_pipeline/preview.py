"""Samples as a model is given them, made visible: before their transforms and after.

`data_pipeline.contact_sheet` draws them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.transform import Transform
from data_pipeline.batches import BatchBuilder
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.heads import Span
from data_pipeline.images import decode_jpeg_or_png
from data_pipeline.manifest import Column
from data_pipeline.ragged import LENGTHS
from data_pipeline.recipe import Recipe

MOST_LINES = 8
"""Features of a series that are drawn, the first ones."""

MOST_UNLIKE = 32
"""Up to so many numbers in a row are taken for unlike features, each with a scale of its own."""

NAMED_FROM = 0.02
"""A class with a smaller share of a mixed label goes with the others."""

DIM = 127
"""Bytes that reach no further than this are shown from black to white."""

DECODED = 160
"""A large JPEG is decoded at a reduced size, no smaller than this: more can't be seen."""


@dataclass(frozen=True)
class Plot:
    """Lines to be drawn.

    Attributes:
        lines: `(L, T)`; 0 is the bottom of the plot, 1 its top.
        beneath: `(L, S)`, the same sample before its transforms.
    """

    lines: NDArray[np.float64]
    beneath: NDArray[np.float64] | None = None


Content = NDArray[np.uint8] | Plot | str
"""A picture `(H, W, C)` with 1 or 3 channels, lines, or a text."""


@dataclass(frozen=True)
class Cell:
    """A sample once: what there is to see, its label, and the row, where that is to be said."""

    content: Content
    label: str
    row: int | None = None


@dataclass(frozen=True)
class Preview:
    """Samples to look at.

    Attributes:
        caption: What stands above them.
        headings: One for each of a sample's cells.
        samples: The cells of each sample: before its transforms, and after, a few times.
    """

    caption: tuple[str, ...]
    headings: tuple[str, ...]
    samples: tuple[tuple[Cell, ...], ...]


def preview(
    dataset: Dataset, recipe: Recipe, *, num_samples: int = 8, versions: int = 3, epoch: int = 0
) -> Preview:
    """The samples at the first positions of an epoch, each before and `versions` times after.

    The first time after is what training gets in that epoch. The others have the random numbers
    that their positions have in the epochs behind it. Samples are mixed within their micro-batch.
    Transforms that learn from the data must have been fitted.

    Raises:
        DataError: the inputs are nothing that can be shown, or can't be made into batches.
    """
    name = recipe.inputs
    if name is None:
        raise DataError(f"{dataset.name}: name the column that is to be shown as inputs")
    column = dataset.column(name)
    eye = _Eye(dataset, recipe, column)
    target = dataset.columns.get(recipe.target or "")
    count = min(num_samples, dataset.num_rows)
    size = recipe.micro_batch or count
    stop = min(-(-count // size) * size, dataset.num_rows)
    rows = recipe.sampled(dataset).rows(epoch, 0, stop)
    stored = list(_stored(dataset, column, rows[:count]))
    labels = list(_stored(dataset, target, rows[:count])) if target else [None] * count
    cells = [
        [Cell(eye.sees(values), label_text(target, label), int(row))]
        for values, label, row in zip(stored, labels, rows[:count], strict=True)
    ]
    builder = BatchBuilder(dataset, recipe) if versions else None
    for number in range(epoch, epoch + versions):
        assert builder is not None
        batch = builder.build(Span(number, 0, stop), rows, builder.buffers(stop))
        arrays = {key: tensor[:count].numpy() for key, tensor in batch.columns.items()}
        values = eye.unscaled(arrays[name])
        lengths = arrays.get(name + LENGTHS)
        for place, row in enumerate(cells):
            seen = eye.sees(
                values[place] if lengths is None else values[place][: lengths[place]],
                row[0].content,
            )
            label = arrays[target.name][place] if target and target.name in arrays else None
            row.append(Cell(seen, label_text(target, label)))
    after = [f"after, epoch {number + 1}" for number in range(epoch, epoch + versions)]
    return Preview(
        caption=(*_caption(dataset, recipe, column), *eye.remarks()),
        headings=("before", *after) if versions else ("as stored",),
        samples=tuple(map(tuple, cells)),
    )


def label_text(column: Column | None, value: Any) -> str:
    """What a sample is called: `cat`, a mixture such as `cat 0.7 + dog 0.3`, or its numbers."""
    if column is None or value is None:
        return ""
    found = np.asarray(value)
    if column.kind == "text":
        return _text(found)
    if column.kind != "label":
        few = ", ".join(f"{number:.4g}" for number in found.ravel()[:3].astype(float))
        return f"{few}, ..." if found.size > 3 else few
    if found.ndim == 0:
        return column.classes[int(found)]
    shares = found.astype(np.float64)
    order = np.argsort(-shares, kind="stable")[:3]
    named = [number for number in order if shares[number] >= NAMED_FROM] or [order[0]]
    others = float(shares.sum() - shares[named].sum())
    if len(named) == 1 and abs(others) < 0.005:
        return column.classes[int(named[0])]
    parts = [f"{_quoted(column.classes[number])} {_share(shares[number])}" for number in named]
    return " + ".join([*parts, *([f"others {_share(others)}"] if others >= 0.005 else [])])


def _share(share: float) -> str:
    return str(float(f"{share:.2f}")).removesuffix(".0")


def _quoted(name: str) -> str:
    """A name that ends in a digit would run together with its share."""
    return f"'{name}'" if name[-1:].isdigit() else name


def transform_text(transform: Transform) -> str:
    """The transform's name and arguments, numbers with four digits."""
    if not is_dataclass(transform):
        return str(getattr(transform, "__name__", type(transform).__name__))
    plain = re.sub(r"<function (\S+) at \w+>", r"\1", repr(transform))
    return re.sub(r"\d+\.\d{5,}", lambda found: f"{float(found[0]):.4g}", plain)


def _caption(dataset: Dataset, recipe: Recipe, column: Column) -> Iterator[str]:
    yield f"{dataset.name}: {dataset.num_rows:,} rows"
    sizes = "x".join(map(str, column.shape))
    kinds = {"image": f"encoded pictures, {sizes} channels", "text": "text"}
    target = f"; target {recipe.target}" if recipe.target else ""
    yield f"inputs {column.name}: {kinds.get(column.kind, f'{column.dtype} {sizes}'.strip())}" + (
        target
    )
    listed = ", ".join(map(transform_text, recipe.transforms))
    yield f"transforms: {listed or 'none'}"
    if column.name in recipe.standardized and recipe.transforms:
        yield "after: what the model is given, with the scaling undone"


def _stored(dataset: Dataset, column: Column, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Rows as they lie in the data set; pictures `(C, H, W)`, decoded whole."""
    for row in rows:
        if not column.is_ragged:
            values = np.empty((1, *column.shape), column.dtype)
            dataset.gather(column.name, row[None], values)
            yield values[0]
            continue
        for block, local, _ in dataset.ragged(column.name, row[None]):
            values = block.row(int(local[0]))
            if column.kind != "image":
                yield values
                continue
            try:
                picture = decode_jpeg_or_png(values.data, column.shape[0], (DECODED, DECODED))
            except DataError as error:
                raise DataError(f"{dataset.name}: row {row}: {error}") from error
            yield picture.transpose(2, 0, 1)


def _text(letters: NDArray[Any]) -> str:
    whole: bytes = letters.astype(np.uint8).tobytes()
    return whole.rstrip(b"\0").decode(errors="replace")


class _Eye:
    """Makes a column's values visible, and counts those that are beyond what can be shown."""

    def __init__(self, dataset: Dataset, recipe: Recipe, column: Column) -> None:
        """Chooses what is drawn and between which values."""
        self._column, self._scaling = column, recipe.standardized.get(column.name)
        dimensions = len(column.shape) + (column.kind == "sequence")
        self.is_picture = column.kind == "image" or (column.kind == "tensor" and dimensions == 3)
        if column.kind == "tensor" and dimensions > 3:
            raise DataError(
                f"column {column.name!r} of {dataset.name} has rows of shape {column.shape}: "
                "pictures (C, H, W), series (T, F) and features (F,) can be shown"
            )
        statistics = dataset.statistics.get(column.name)
        least = np.asarray(statistics.least if statistics else (), np.float64)
        greatest = np.asarray(statistics.greatest if statistics else (), np.float64)
        alike = dimensions == 1 and column.kind == "tensor" and column.shape[0] > MOST_UNLIKE
        if column.kind == "image" or (self.is_picture and column.dtype == "uint8"):
            brightest = greatest.max(initial=0.0)
            dim = column.kind == "tensor" and 0 < brightest <= DIM
            least, greatest = np.zeros(1), np.full(1, brightest if dim else 255.0)
        elif self.is_picture or alike or dimensions > 2 or not least.size:
            least = least.min(initial=np.inf, keepdims=True) if least.size else np.zeros(1)
            greatest = greatest.max(initial=-np.inf, keepdims=True) if greatest.size else least + 1
        self._least, self._greatest = least, greatest
        self._seen = self._beyond = 0

    def unscaled(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows `(B, ...)` as the model is given them, with the standardisation undone."""
        if self._scaling is None:
            return rows.copy()
        shape = [1] * rows.ndim
        if self._scaling.axis is not None:
            shape[self._scaling.axis] = -1
        offset, scale = (
            part.astype(np.float64).reshape(shape)
            for part in (self._scaling.offset, self._scaling.scale)
        )
        found: NDArray[np.float64] = (rows - offset) / scale
        return found

    def sees(self, values: NDArray[Any], before: Content | None = None) -> Content:
        """What is to be drawn of one row; `before` is what it was before the transforms."""
        if self._column.kind == "text":
            return _text(values)
        if not self.is_picture and values.ndim == 0:
            return label_text(self._column, values)
        parts = self._parts(np.asarray(values, np.float64))
        if before is not None:
            slack = 0.5 / 255
            self._seen += parts.size
            self._beyond += int(((parts < -slack) | (parts > 1 + slack)).sum())
        if self.is_picture:
            shown = parts if len(parts) == 3 else parts[:1]
            levels = np.rint(255 * np.clip(np.nan_to_num(shown), 0, 1)).astype(np.uint8)
            return np.ascontiguousarray(levels.transpose(1, 2, 0))
        lines = parts[None] if parts.ndim == 1 else parts.reshape(len(parts), -1).T
        return Plot(lines[:MOST_LINES], before.lines if isinstance(before, Plot) else None)

    def _parts(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where values lie between the least, 0, and the greatest, 1."""
        span = self._greatest - self._least
        found: NDArray[np.float64] = (values - self._least) / np.where(span > 0, span, 1.0)
        return found

    def remarks(self) -> Iterator[str]:
        """How to read what is shown."""
        low, high = float(self._least.min()), float(self._greatest.max())
        column, between = self._column, "its least to its greatest value in the training part"
        if column.kind == "text":
            return
        features = int(np.prod(column.shape[1 if column.kind == "tensor" else 0 :]))
        if len(self._least) > 1:
            yield f"each feature is drawn from {between}"
        elif not self.is_picture:
            yield f"drawn from {low:.4g} to {high:.4g}"
        elif (low, high) != (0, 255):
            yield f"black is {low:.4g}, white is {high:.4g}"
        if self.is_picture and column.shape[0] not in (1, 3):
            yield f"the first of {column.shape[0]} channels is shown"
        elif not self.is_picture and features > MOST_LINES:
            yield f"the first {MOST_LINES} of {features} features are shown"
        if self._beyond:
            named = "these" if len(self._least) > 1 else f"{low:.4g} to {high:.4g}"
            share = self._beyond / self._seen
            yield f"{share:.1%} of the values after lie outside {named}, and are clipped here"
