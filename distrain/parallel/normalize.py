"""A norm of one micro-batch by the mean and variance of the whole global batch (rule 11).

Each micro-batch brings its own count, mean and sum of squared deviations; they are merged along the
tree in float64 (Chan, Golub and LeVeque 1979: no difference of large numbers). In the backward pass
it brings its sums of g and of g * xhat, of which

    dx = w / std * (g - sum(g) / n - xhat * sum(g * xhat) / n)

needs those over the whole batch. The gradients of weight and bias are such sums as well; those stay
a micro-batch's own, and are summed with all other gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Phase(IntEnum):
    """When a norm meets."""

    FORWARD = 0
    BACKWARD = 1
    RECOMPUTED = 2


@dataclass(frozen=True)
class Whole:
    """What all micro-batches have together.

    Attributes:
        count: Values a channel.
        words: `(2, C)`. Forward: mean and biased variance. Backward: the means of g and g * xhat.
    """

    count: int
    words: torch.Tensor


Meet = Callable[[Phase, int, torch.Tensor], Whole]
"""Brings a count and a row `(words,)` of one micro-batch; gives what all have together."""


def merge_moments(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Count, means and sums of squared deviations, `(..., 1 + 2 C)`, of two parts together."""
    sizes = [1, left.shape[-1] // 2, left.shape[-1] // 2]
    of_left, left_mean, left_squares = torch.split(left, sizes, dim=-1)
    of_right, right_mean, right_squares = torch.split(right, sizes, dim=-1)
    count = of_left + of_right
    delta = right_mean - left_mean
    moved = delta * (of_right / count)
    between = delta * moved * of_left
    return torch.cat([count, left_mean + moved, left_squares + right_squares + between], dim=-1)


def local_moments(x: torch.Tensor) -> torch.Tensor:
    """What `moments_of` is made from, `(3 C,)`, for `(N, C, ...)`; float32 unless that is float64.

    By channel: c, a value near the mean; the sum of x - c; the sum of (x - c)^2.
    """
    if x.is_cuda:
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
        return torch.cat([mean, torch.zeros_like(mean), variance * (x.numel() // x.shape[1])])
    # On CPUs that kernel takes 4 times as long as these three passes. The last is that of a
    # backward pass, where it sums g and g * xhat.
    x = x if x.dtype == torch.float64 else x.float()
    near = x.mean([at for at in range(x.dim()) if at != 1])
    deviations = x - near.view(-1, *[1] * (x.dim() - 2))
    _, squares, rest = torch.ops.aten.native_batch_norm_backward(
        *(deviations, x, None, near, torch.ones_like(near), None, None),
        *(False, 0.0, [False, True, True]),
    )
    return torch.cat([near, rest, squares])


def moments_of(local: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Count, means and sums of squared deviations, `(k, 1 + 2 C)`, float64, from `(k, 3 C)`."""
    near, rest, squares = local.double().chunk(3, dim=1)
    count = _column(tuple(counts), local.device)
    beside = rest / count
    return torch.cat([count, near + beside, (squares - beside * rest).clamp_(min=0.0)], dim=1)


@lru_cache(64)
def _column(counts: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """`(k, 1)`: they hardly ever change, and making a tensor takes as long as five sums."""
    return torch.tensor(counts, dtype=torch.float64, device=device).unsqueeze(1)


class Normalize(torch.autograd.Function):
    """One use of a norm by one micro-batch."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        meet: Meet,
    ) -> torch.Tensor:
        """`(N, C, ...)`, for inputs of that shape."""
        again = torch._C._current_graph_task_id() != -1
        count = x.numel() // x.shape[1]
        whole = meet(Phase.RECOMPUTED if again else Phase.FORWARD, count, local_moments(x))
        # Half precision is normalised by float32 statistics, as torch does.
        mean, variance = whole.words.unbind()
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps, ctx.meet, ctx.count = eps, meet, whole.count
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of inputs, weight and bias, as far as they are wanted."""
        x, weight, mean, variance = ctx.saved_tensors
        # As if mean and variance were constants; the sums of g * xhat and g come with it.
        dx, of_xhat, of_grad = torch.ops.aten.native_batch_norm_backward(
            *(grad, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True])
        )
        for_x, for_weight, for_bias, *_ = ctx.needs_input_grad
        if for_x:
            whole = ctx.meet(Phase.BACKWARD, ctx.count, torch.cat([of_grad, of_xhat]))
            scale = (variance + ctx.eps).rsqrt()
            shift, slope = (whole.words * (scale if weight is None else scale * weight)).unbind()
            dx -= F.batch_norm(x, mean, variance, slope, shift, False, 0.0, ctx.eps)
        return (
            dx if for_x else None,
            of_xhat if for_weight else None,
            of_grad if for_bias else None,
            None,
            None,
        )
