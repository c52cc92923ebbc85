"""A batch from the rows of its span: gathered, transformed, scaled, in buffers that are reused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.augment.transform import Samples, run
from data_pipeline.dataset import Dataset
from data_pipeline.heads import Span, clear_padding
from data_pipeline.ragged import LENGTHS
from data_pipeline.recipe import Recipe
from data_pipeline.stages import stages_of

Shape = tuple[tuple[int, ...], np.dtype[Any]]
"""Of a row, with its dtype."""


@dataclass(frozen=True)
class Batch:
    """The samples of one span.

    Attributes:
        rows: Row numbers in the data set, `(B,)`.
        columns: Tensors `(B, ...)` by column name. They lie in buffers that are used again: valid
            until the next batch is asked for.
    """

    span: Span
    rows: NDArray[np.int64]
    columns: dict[str, torch.Tensor]


class Buffers:
    """Memory for one batch of at most `max_rows`: what transforms start from, and what comes out.

    Torch's memory is aligned to 64 bytes, NumPy's is not, and alignment shows in bits.
    """

    def __init__(
        self, shapes: dict[str, Shape], raw: dict[str, Shape], max_rows: int, pinned: bool
    ) -> None:
        """`shapes` are those of a batch's columns, `raw` those that transforms start from."""
        self.tensors = {
            name: torch.zeros((max_rows, *shape), dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
            for name, (shape, dtype) in shapes.items()
        }
        if pinned:
            self.tensors = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        self.arrays = {name: tensor.numpy() for name, tensor in self.tensors.items()}
        self.raw = {
            name: np.zeros((max_rows, *shape), dtype) for name, (shape, dtype) in raw.items()
        }


class BatchBuilder:
    """Builds the batches that a recipe describes; one for any number of threads."""

    def __init__(self, dataset: Dataset, recipe: Recipe) -> None:
        """Plans which transforms are done in one pass with the gathering.

        Raises:
            DataError: the data set can't be made into such batches.
        """
        self._dataset, self._recipe = dataset, recipe
        self._stages = stages_of(dataset, recipe)
        heads: dict[str, Shape] = {
            name: (head.shape, head.dtype) for name, head in self._stages.heads.items()
        }
        self._starts = heads if self._stages.go_on else {}
        self._shapes = self._probed() if self._stages.go_on else heads

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a row of a column as it comes out."""
        return self._shapes[name][0]

    def buffers(self, max_rows: int, *, pinned: bool = False) -> Buffers:
        """Memory for one batch of at most `max_rows` samples."""
        return Buffers(self._shapes, self._starts, max_rows, pinned)

    def build(self, span: Span, rows: NDArray[np.int64], buffers: Buffers) -> Batch:
        """The batch of some rows, which stand at the span's positions.

        Raises:
            DataError: a picture can't be decoded; it names the row.
            ValueError: a transform did not give what it gave before.
        """
        count = len(rows)
        first = buffers.raw if self._stages.go_on else buffers.arrays
        for name, head in self._stages.heads.items():
            head.fill(rows, span, first[name][:count])
        if self._stages.go_on:
            self._transform(span, count, buffers)
        columns = {name: tensor[:count] for name, tensor in buffers.tensors.items()}
        return Batch(span, rows, columns)

    def _transform(self, span: Span, count: int, buffers: Buffers) -> None:
        """Micro-batch by micro-batch: no transform sees more, whoever computes how many of them."""
        size = self._recipe.micro_batch or max(count, 1)
        for start in range(0, count, size):
            stop = min(start + size, count)
            begun = {name: array[start:stop] for name, array in buffers.raw.items()}
            done = self._run(begun, span.epoch, span.start + start)
            if done.keys() != buffers.arrays.keys():
                raise ValueError(
                    f"the transforms gave the columns {sorted(done)}, and of the first samples "
                    f"{sorted(self._shapes)}: every batch must come out alike"
                )
            for name, array in done.items():
                out = buffers.arrays[name][start:stop]
                if array.shape != out.shape or array.dtype != out.dtype:
                    raise ValueError(
                        f"the transforms made {array.dtype} of shape {array.shape} of column "
                        f"{name!r}, and of the first samples {out.dtype} of shape {out.shape}: "
                        "every batch must come out alike"
                    )
                out[...] = array

    def _run(
        self, arrays: dict[str, NDArray[Any]], epoch: int, position: int
    ) -> dict[str, NDArray[Any]]:
        recipe = self._recipe
        samples = Samples(arrays, self._dataset.columns, recipe.inputs or "", recipe.target)
        place: dict[str, int] = {"seed": recipe.seed, "epoch": epoch, "first_position": position}
        run(self._stages.raw, samples, **place)
        for name, scaling in self._stages.late_scaling.items():
            raw = samples.arrays[name]
            samples.arrays[name] = np.empty(raw.shape, np.float32)
            scaling.apply(raw, samples.arrays[name])
        self._clear_padding(samples)  # for the transforms that come now, and again after them
        run(self._stages.scaled, samples, **place)
        self._clear_padding(samples)
        return samples.arrays

    def _clear_padding(self, samples: Samples) -> None:
        for name in self._stages.padded:
            padded, lengths = samples.arrays[name], samples.arrays[name + LENGTHS]
            if not padded.flags.writeable:
                padded = samples.arrays[name] = padded.copy()
            clear_padding(padded, lengths)

    def _probed(self) -> dict[str, Shape]:
        """What the transforms make of the first samples: the shape of every batch's columns."""
        count = min(2, self._dataset.num_rows)
        rows, span = np.arange(count), Span(0, 0, count)
        begun = {
            name: np.zeros((count, *shape), dtype) for name, (shape, dtype) in self._starts.items()
        }
        for name, head in self._stages.heads.items():
            head.fill(rows, span, begun[name])
        done = self._run(begun, 0, 0)
        return {name: (array.shape[1:], array.dtype) for name, array in done.items()}
