"""Forty rows, and what a prefetcher makes of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline import Dataset
from data_pipeline.augment import Flip, Shift
from data_pipeline.batches import Batch
from data_pipeline.heads import Span
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe
from data_pipeline.standardize import standardization

NUM_ROWS = 40
GENERATOR = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "image": GENERATOR.integers(0, 256, (NUM_ROWS, 2, 5, 4), dtype=np.uint8),
    "weight": GENERATOR.normal(size=NUM_ROWS).astype(np.float32),
    "label": np.arange(NUM_ROWS) % 3,
    "row": np.arange(NUM_ROWS),
}
DATASET = Dataset.from_arrays(ARRAYS, classes={"label": "abc"})
SCALING = standardization(DATASET, "image", scaled=True)
assert SCALING is not None
TRANSFORMS = (Shift(1), Flip())
RECIPE = Recipe(
    columns=("image", "label"),
    seed=7,
    sampling="shuffled",
    inputs="image",
    transforms=TRANSFORMS,
    standardized={"image": SCALING},
)


def epoch_of_spans(epoch: int, length: int) -> list[Span]:
    starts = range(0, NUM_ROWS, length)
    return [Span(epoch, start, min(start + length, NUM_ROWS)) for start in starts]


@dataclass(frozen=True)
class Copy:
    """A batch that may be kept."""

    span: Span
    rows: list[int]
    columns: dict[str, NDArray[Any]]


def copied(batch: Batch) -> Copy:
    columns = {name: tensor.numpy().copy() for name, tensor in batch.columns.items()}
    return Copy(batch.span, batch.rows.tolist(), columns)


def load(recipe: Recipe, spans: list[Span], **ahead: Any) -> list[Copy]:
    with Prefetcher(DATASET, recipe, spans, max_rows=NUM_ROWS, **ahead) as batches:
        return [copied(batch) for batch in batches]
