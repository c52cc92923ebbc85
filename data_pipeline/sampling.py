"""Which rows the positions of a data set's epochs stand for."""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.order import (
    BLOCK,
    BalancedOrder,
    BootstrapOrder,
    Order,
    SequentialOrder,
    ShuffledOrder,
    check_range,
    rows_by_class,
)

Kind = Literal["stored", "shuffled", "with_replacement", "bootstrap", "balanced"]
"""As they lie; each once, shuffled; drawn anew with replacement in every epoch; one such draw, in
another order in every epoch, which is what bagging wants; every class equally often."""


class Sampling:
    """The rows at any positions: a pure function of (kind, seed, epoch, position)."""

    def __init__(
        self, dataset: Dataset, kind: Kind = "stored", *, seed: int = 0, label: str | None = None
    ) -> None:
        """`label` is the column of the classes that "balanced" goes by.

        Raises:
            DataError: there is no such kind, or no labels to balance by.
        """
        if kind not in get_args(Kind):
            raise DataError(f"sampling is {kind!r}; it can be {', '.join(get_args(Kind))}")
        self._dataset, self.kind, self._seed, self._label = dataset, kind, seed, label
        if kind == "balanced" and (label is None or dataset.column(label).kind != "label"):
            raise DataError(
                f'sampling "balanced" needs a column of class labels, and {label!r} of '
                f"{dataset.name} is none: take another column, or another sampling"
            )
        self._epoch: int | None = None
        self._order: Order = SequentialOrder(dataset.num_rows)
        self._first = self._last = 0
        self._block = np.empty(0, dtype=np.int64)
        self._classes: tuple[NDArray[np.int64], ...] | None = None

    def order(self, epoch: int) -> Order:
        """The order of one epoch."""
        num_rows = self._dataset.num_rows
        if self.kind == "stored":
            return SequentialOrder(num_rows)
        if self.kind == "shuffled":
            return ShuffledOrder(num_rows, self._seed, epoch)
        if self.kind in ("with_replacement", "bootstrap"):
            resampled = self.kind == "with_replacement"
            return BootstrapOrder(num_rows, self._seed, epoch, resampled=resampled)
        return BalancedOrder(num_rows, self._seed, epoch, self._by_class())

    def rows(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers at the positions [start, stop); a block is evaluated at a time.

        Not for several threads at once.
        """
        if epoch != self._epoch:
            self._order, self._epoch, self._first, self._last = self.order(epoch), epoch, 0, 0
        check_range(start, stop, self._dataset.num_rows)
        if not self._first <= start <= stop <= self._last:
            self._first = start
            self._last = min(max(stop, start + BLOCK), self._dataset.num_rows)
            self._block = self._order.rows(self._first, self._last)
        return self._block[start - self._first : stop - self._first]

    def _by_class(self) -> tuple[NDArray[np.int64], ...]:
        if self._classes is not None:  # no cached_property: it has a lock, which a fork may take
            return self._classes
        assert self._label is not None
        column = self._dataset.column(self._label)
        labels = np.empty(self._dataset.num_rows, dtype=column.dtype)
        self._dataset.gather(self._label, np.arange(len(labels)), labels)
        self._classes = rows_by_class(labels, len(column.classes))
        return self._classes
