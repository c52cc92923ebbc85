"""What is to blame: micro-batches for a bad loss or gradient, a parameter for ruined weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.bad_numbers import StepLimits
from distrain.errors import NonFiniteError, RuinedWeightsError, SpikeError
from distrain.parallel.split import GlobalBatch
from distrain.parallel.world import World

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
    return NonFiniteError(
        step=batch.step + 1,
        epoch=batch.epoch + 1,
        what=what,
        rows=_rows(batch, found, rows_at),
        cause=_NO_OVERFLOW if spent_scale else "",
    )


def spike(
    batch: GlobalBatch,
    losses: Mapping[int, tuple[torch.Tensor, torch.Tensor | float]],
    rows_at: RowsAt,
    world: World,
    limits: StepLimits,
    value: float,
) -> SpikeError:
    """The error that names the rows of the micro-batch with the highest mean loss.

    A closing exchange, which all workers enter; `losses` has the sum and the weight of this
    worker's micro-batches.
    """
    means = torch.zeros(batch.num_micro_batches, dtype=torch.float64)
    for micro_batch, (loss_sum, weight) in losses.items():
        means[micro_batch] = float(loss_sum) / float(weight) if float(weight) else -math.inf
    # All but one worker have 0 there, and adding that changes no bit.
    everyone = world.communicator.all_gather(means.to(world.device)).sum(0).cpu()
    return SpikeError(
        step=batch.step + 1,
        epoch=batch.epoch + 1,
        watch=limits.watch,
        value=value,
        above=limits.spike_above,
        rows=_rows(batch, [int(everyone.argmax())], rows_at),
    )


def _rows(batch: GlobalBatch, micro_batches: Sequence[int], rows_at: RowsAt) -> list[int]:
    positions = [batch.positions(range(number, number + 1)) for number in micro_batches]
    rows: list[int] = np.concatenate([rows_at(batch.epoch, *one) for one in positions]).tolist()
    return rows


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


def check_finite(model: torch.nn.Module, step: int, epoch: int) -> None:
    """Refuses weights that an update has ruined: the next step's loss would come too late.

    Raises:
        RuinedWeightsError: names the first parameter that is not finite, on all workers alike.
    """
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise RuinedWeightsError(step=step, epoch=epoch, name=name)
