"""A model that fails once training has moved its weights far enough, with no other state.

For `model.build = "spoiled_model:build"`. `fault` is what happens where a number before the last
layer exceeds `bound`: "forward" (that number becomes NaN), "backward" (its gradient becomes
infinite), "raise", or "nothing".
"""

from typing import Any

import torch
from torch import nn


class _Steep(torch.autograd.Function):
    """Passes numbers on; the gradient is divided by 0 where they exceed a bound."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bound: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] / (x < ctx.bound).float(), None


class Spoiled(nn.Module):
    def __init__(self, fault: str, bound: float) -> None:
        super().__init__()
        self.fault, self.bound = fault, bound

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.fault == "nothing":
            return x
        if self.fault == "backward":
            steep: torch.Tensor = _Steep.apply(x, self.bound)  # type: ignore[no-untyped-call]
            return steep
        if self.fault == "raise" and x.max() > self.bound:
            raise ValueError("planted in the model")
        return x + 0.0 * torch.sqrt(self.bound - x) if self.fault == "forward" else x


def build(num_outputs: int, fault: str = "nothing", bound: float = 8.0) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(16, 16),
        Spoiled(fault, bound),
        nn.Linear(16, num_outputs),
    )
