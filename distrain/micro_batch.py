"""What is done with one micro-batch: what goes in, and what has to come out."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch

from distrain.errors import ProgramError
from distrain.numerics import aligned
from distrain.parallel.split import GlobalBatch

Columns = Mapping[str, torch.Tensor]
"""The tensors of some samples, `(B, ...)`, by column name."""

MicroBatchResult = tuple[torch.Tensor, torch.Tensor | float, torch.Tensor | None]
"""Loss sum (scalar), weight, and the outputs for the metrics (or None)."""

MicroBatchStep = Callable[[torch.nn.Module, Columns], MicroBatchResult]
"""What is done with one micro-batch."""

MicroBatchWatch = Callable[
    [MicroBatchStep, GlobalBatch, int, torch.nn.Module, Columns],
    AbstractContextManager[MicroBatchStep],
]
"""Is entered round forward and backward pass of a micro-batch, known by its number, with what is
done, the module and its columns; gives what is done in its place, which has to give the same."""


def columns_of(batch: GlobalBatch, owned: range, micro_batch: int, columns: Columns) -> Columns:
    """One micro-batch's columns from those of all own ones."""
    first = batch.positions(owned)[0]
    start, stop = batch.positions(range(micro_batch, micro_batch + 1))
    return {name: aligned(column[start - first : stop - first]) for name, column in columns.items()}


def checked_result(result: object) -> MicroBatchResult:
    """What a micro-batch step has returned, if it is what was asked for.

    Raises:
        ProgramError: it is something else.
    """
    if isinstance(result, tuple) and len(result) == 3:
        return result
    what = f"a tuple of {len(result)}" if isinstance(result, tuple) else type(result).__name__
    raise ProgramError(
        f"the micro_batch_step returned {what}; it must return (loss sum, weight, outputs), the "
        "last None if neither metrics nor predictions are wanted"
    )


def check_loss(loss_sum: object) -> None:
    """Refuses what no gradient can be taken of.

    Raises:
        ProgramError: it is no single number, or depends on no parameter.
    """
    if not (torch.is_tensor(loss_sum) and loss_sum.numel() == 1 and loss_sum.requires_grad):
        given = f"of shape {tuple(loss_sum.shape)}" if torch.is_tensor(loss_sum) else repr(loss_sum)
        raise ProgramError(
            f"the loss sum is {given}; a single number that depends on a parameter which requires "
            "a gradient is needed: return the sum over the micro-batch's samples"
        )
