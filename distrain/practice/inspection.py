"""A look inside: by parameter, how large gradient and weights are, and how far a step moves them.

A step that moves the weights by about a thousandth of their norm is a healthy one; far less, and
nothing is learned there; far more, and what was learned is overwritten. Everything is computed
from the mean gradient and the weights before and after the update, which each worker has anyway;
of a sharded optimizer the gradient is brought together first. So it is the same at any number of
workers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from distrain.errors import ConfigError

HEALTHY_RATIO = 1e-3
"""The order of a healthy update's norm over that of the weights."""


@dataclass(frozen=True)
class Inspection:
    """What one step did, by trainable parameter.

    Attributes:
        names: Of the parameters.
        gradient_norms: 2-norms of the mean gradients before clipping; 0 where there was none.
        weight_norms: 2-norms before the update.
        update_norms: 2-norms of the updates.
        update_ratios: Those over the weights'; NaN where the weights were all 0.
    """

    names: tuple[str, ...]
    gradient_norms: tuple[float, ...]
    weight_norms: tuple[float, ...]
    update_norms: tuple[float, ...]
    update_ratios: tuple[float, ...]


class Inspector:
    """Looks at every so-manieth step."""

    def __init__(
        self, names: Sequence[str], parameters: Sequence[torch.Tensor], every_steps: int | None
    ) -> None:
        """Looks at no step where `every_steps` is None or 0.

        Raises:
            ConfigError: it is negative.
        """
        if every_steps is not None and every_steps < 0:
            raise ConfigError(f"inspect_every is {every_steps}; give 1 or more, or 0 for never")
        self._names, self._parameters = tuple(names), list(parameters)
        self._every = every_steps or None
        self._gradient_norms: list[float] = []
        self._before: list[torch.Tensor] = []

    def before(self, step: int, gradients: Callable[[], Sequence[torch.Tensor]]) -> None:
        """Looks at the gradients, and keeps the weights; called between the sum and the update.

        Args:
            step: Counted from 0.
            gradients: Called if the step is looked at: the mean gradient of each parameter, not
                clipped yet.
        """
        self._before = []
        if self._every is None or (step + 1) % self._every:
            return
        self._gradient_norms = _norms(gradients())
        self._before = [parameter.detach().clone() for parameter in self._parameters]

    def after(self) -> Inspection | None:
        """What the update has done, if the step is one to look at."""
        before, self._before = self._before, []
        if not before:
            return None
        weights = _norms(before)
        torch._foreach_sub_(before, [parameter.detach() for parameter in self._parameters])
        updates = _norms(before)
        ratios = [
            update / weight if weight else math.nan
            for update, weight in zip(updates, weights, strict=True)
        ]
        norms = tuple(self._gradient_norms), tuple(weights), tuple(updates)
        return Inspection(self._names, *norms, tuple(ratios))


def _norms(tensors: Sequence[torch.Tensor]) -> list[float]:
    """2-norms; a device is waited for once."""
    norms: list[float] = torch.stack(torch._foreach_norm(list(tensors))).tolist()
    return norms
