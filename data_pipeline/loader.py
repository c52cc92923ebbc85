"""From positions to batches: gathered, augmented, standardised in a thread, into reused buffers."""

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline import order as orders
from data_pipeline.augment import Transform, apply
from data_pipeline.dataset import Dataset
from data_pipeline.manifest import Column
from data_pipeline.standardize import Standardization


class Order(Protocol):
    """What stands at which position."""

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers at the positions [start, stop)."""
        ...


@dataclass(frozen=True)
class Span:
    """The positions [start, stop) of an epoch; `start == stop` is a batch without samples."""

    epoch: int
    start: int
    stop: int


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


@dataclass(frozen=True)
class Recipe:
    """How the rows of a data set become the columns of a batch.

    Attributes:
        columns: Names of the columns wanted.
        shuffle: Whether an epoch's order is the permutation of (seed, epoch), or as stored.
        augmented: The column that the transforms apply to.
        transforms: Applied in turn to the raw values, before standardisation.
        standardized: By column, the scaling to float32.
    """

    columns: tuple[str, ...]
    seed: int = 0
    shuffle: bool = False
    augmented: str | None = None
    transforms: Sequence[Transform] = ()
    standardized: Mapping[str, Standardization] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses transforms that would apply to nothing."""
        if self.transforms and self.augmented not in self.columns:
            raise ValueError(
                f"transforms are given, but the column they apply to ({self.augmented!r}) is not "
                f"among {self.columns}"
            )


class Loader:
    """Iterates over spans and prepares up to `depth` batches ahead, in order, in one thread.

    An error in the thread is raised by the `next()` that would have given its batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        spans: Iterable[Span],
        *,
        max_rows: int,
        depth: int = 2,
        pin_memory: bool = False,
    ) -> None:
        """Starts the thread at once; `max_rows` is the longest span's length."""
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be 1 or more")
        self._dataset, self._recipe, self._spans = dataset, recipe, spans
        self._max_rows = max_rows
        columns = {name: dataset.column(name) for name in recipe.columns}
        # depth batches wait or are being made, one is in the consumer's hands.
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        for _ in range(depth + 1):
            self._free.put(_Slot(columns, recipe, max_rows, pin_memory))
        self._ready: queue.SimpleQueue[tuple[Batch, _Slot] | Exception | None] = queue.SimpleQueue()
        self._held: _Slot | None = None
        self._closed = threading.Event()
        self._order = _CachedOrder(dataset.num_rows, recipe)
        self._thread = threading.Thread(target=self._work, name="distrain-loader", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for span in self._spans:
                slot = self._free.get()
                if slot is None or self._closed.is_set():
                    break
                self._ready.put((self._fill(slot, span), slot))
            self._ready.put(None)
        except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
            self._ready.put(error)

    def _fill(self, slot: "_Slot", span: Span) -> Batch:
        rows = self._order.rows(span)
        if len(rows) > self._max_rows:
            raise ValueError(f"{span} has more than the {self._max_rows} rows that buffers hold")
        columns: dict[str, torch.Tensor] = {}
        for name in self._recipe.columns:
            raw = slot.raw[name][: len(rows)]
            self._dataset.gather(name, rows, raw)
            columns[name] = self._finish(slot, name, raw, span)
        return Batch(span, rows, columns)

    def _finish(self, slot: "_Slot", name: str, raw: NDArray[Any], span: Span) -> torch.Tensor:
        recipe = self._recipe
        if name == recipe.augmented and recipe.transforms and len(raw):
            raw[...] = apply(
                recipe.transforms,
                raw,
                seed=recipe.seed,
                epoch=span.epoch,
                first_position=span.start,
            )
        if name in recipe.standardized:
            recipe.standardized[name].apply(raw, slot.scaled[name][: len(raw)])
        return slot.tensors[name][: len(raw)]

    def __iter__(self) -> Iterator[Batch]:
        """The loader itself: it can be gone through once."""
        return self

    def __next__(self) -> Batch:
        """The next span's batch; the one before is given up.

        Raises:
            StopIteration: all spans were served, or the loader was closed.
        """
        if self._held is not None:
            self._free.put(self._held)
            self._held = None
        if self._closed.is_set():
            raise StopIteration
        ready = self._ready.get()
        if ready is None or isinstance(ready, Exception):
            self.close()
            if ready is None:
                raise StopIteration
            raise ready
        batch, self._held = ready
        return batch

    def close(self) -> None:
        """Ends the thread and waits for it; may be called more than once."""
        self._closed.set()
        self._free.put(None)
        self._thread.join()

    def __enter__(self) -> Self:
        """For `with`: the loader is closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the loader."""
        self.close()


class _Slot:
    """Buffers for one batch: raw values as stored and, where a column is scaled, float32."""

    def __init__(
        self, columns: Mapping[str, Column], recipe: Recipe, max_rows: int, pin_memory: bool
    ) -> None:
        self.raw: dict[str, NDArray[Any]] = {}
        self.scaled: dict[str, NDArray[np.float32]] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        for name, column in columns.items():
            shape = (max_rows, *column.shape)
            # Torch's memory is aligned to 64 bytes, NumPy's is not, and alignment shows in bits.
            raw = torch.zeros(shape, dtype=_torch_dtype(column.dtype))
            final = torch.zeros(shape) if name in recipe.standardized else raw
            if pin_memory:
                final = final.pin_memory()
                raw = raw if name in recipe.standardized else final
            self.raw[name] = raw.numpy()
            self.tensors[name] = final
            if name in recipe.standardized:
                self.scaled[name] = final.numpy()


def _torch_dtype(name: str) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=name)).dtype


class _CachedOrder:
    """The order of the epoch in hand, evaluated a block at a time: short calls cost most."""

    def __init__(self, num_rows: int, recipe: Recipe) -> None:
        self._num_rows, self._recipe = num_rows, recipe
        self._epoch: int | None = None
        self._first = self._last = 0
        self._block = np.empty(0, dtype=np.int64)
        self._order: Order = orders.SequentialOrder(num_rows)

    def rows(self, span: Span) -> NDArray[np.int64]:
        if not self._recipe.shuffle:
            return self._order.rows(span.start, span.stop)
        if span.epoch != self._epoch:
            self._epoch, self._first, self._last = span.epoch, 0, 0
            self._order = orders.ShuffledOrder(self._num_rows, self._recipe.seed, span.epoch)
        orders.check_range(span.start, span.stop, self._num_rows)
        if not self._first <= span.start <= span.stop <= self._last:
            self._first = span.start
            self._last = min(max(span.stop, span.start + orders.BLOCK), self._num_rows)
            self._block = self._order.rows(self._first, self._last)
        return self._block[span.start - self._first : span.stop - self._first]
