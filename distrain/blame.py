"""Which micro-batches are to blame for a loss or gradient that is not finite."""

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.errors import NonFiniteError
from distrain.parallel.split import GlobalBatch

RowsAt = Callable[[int, int, int], NDArray[np.int64]]
"""From (epoch, start, stop) to the rows at these positions."""


class Mark(IntEnum):
    """What is noted of each micro-batch when a step is done once more."""

    LOSS = 0
    """Its loss is not finite."""
    GRADIENT = 1
    """Its gradient is not."""
    NORM_INPUT = 2
    """Which meeting of synchronised batch norms it came to first with an input that is not; they
    are counted from 1. After it all others are not finite either."""
    NORM_GRADIENT = 3
    """The same of a gradient."""


_NO_OVERFLOW = (
    "The loss scale is down at 1, so it is not to blame: a gradient overflows float16 by itself "
    '(precision "bfloat16" has the range of float32), or has no value. '
)


def new_marks(num_micro_batches: int) -> torch.Tensor:
    """`(marks, M)`, int64, all 0."""
    return torch.zeros(len(Mark), num_micro_batches, dtype=torch.int64)


def non_finite(
    batch: GlobalBatch, marks: torch.Tensor, rows_at: RowsAt, *, spent_scale: bool = False
) -> NonFiniteError:
    """The error that names the first fault and its rows, from all workers' marks.

    `spent_scale`: the loss scale has been halved as often as it can be.
    """
    what, found = at_fault(marks)
    positions = [batch.positions(range(number, number + 1)) for number in found]
    rows = np.concatenate([rows_at(batch.epoch, *position) for position in positions])
    return NonFiniteError(
        step=batch.step + 1,
        epoch=batch.epoch + 1,
        what=what,
        rows=rows.tolist(),
        cause=_NO_OVERFLOW if spent_scale else "",
    )


def at_fault(marks: torch.Tensor) -> tuple[str, list[int]]:
    """What is not finite, and in which micro-batches: the cause before what follows from it."""
    causes = (
        (Mark.NORM_INPUT, "input of a batch norm"),
        (Mark.LOSS, "loss"),
        (Mark.NORM_GRADIENT, "gradient"),
        (Mark.GRADIENT, "gradient"),
    )
    for mark, what in causes:
        row = marks[mark]
        if row.any():
            first = row == row[row > 0].min()
            return what, torch.nonzero(first).flatten().tolist()
    return "sum of the gradients", list(range(marks.shape[1]))
