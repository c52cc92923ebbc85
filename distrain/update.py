"""What follows from a step's summed gradient: clipping, the learning rate, the new weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distrain.errors import ConfigError, ProgramError
from distrain.learn.schedules import Schedule
from distrain.numerics import seed_generators, update_seed
from distrain.parallel.ownership import Ownership


@dataclass(frozen=True)
class Clip:
    """Limits on the summed gradient: by element first, then by global norm."""

    value: float | None = None
    norm: float | None = None

    def __post_init__(self) -> None:
        """Refuses limits that no gradient keeps."""
        for name, limit in (("clip_norm", self.norm), ("clip_value", self.value)):
            if limit is not None and not limit > 0:
                raise ConfigError(f"{name} is {limit}; it must be above 0")


class WeightUpdate:
    """Moves the weights that this worker owns; all workers then have all of them."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        ownership: Ownership,
        schedule: Schedule,
        clip: Clip,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        """`seed` is the run's: an optimizer may draw."""
        self.optimizer, self.ownership = optimizer, ownership
        self._schedule, self._clip = schedule, clip
        self._seed, self._device = seed, device
        self._base_lrs = [float(group["lr"]) for group in optimizer.param_groups]

    def norm(self, gradient: torch.Tensor) -> float:
        """The mean gradient's 2-norm over all workers' shares."""
        return self.ownership.norm(gradient)

    def clip(self, gradient: torch.Tensor, norm: float) -> None:
        """Clamps, then scales as torch.nn.utils.clip_grad_norm_ does: limit / (norm + 1e-6)."""
        owned = self.ownership.owned(gradient)
        if self._clip.value is not None:
            for piece in owned:
                piece.clamp_(-self._clip.value, self._clip.value)
            norm = self.ownership.norm(gradient) if self._clip.norm is not None else norm
        if self._clip.norm is not None:
            factor = self._clip.norm / (norm + 1e-6)
            if factor < 1.0:
                for piece in owned:
                    piece.mul_(factor)

    def set_learning_rate(self, step: int, lowered: float = 1.0) -> float:
        """Every group's rate at a step, times a factor; returns the first one's.

        Raises:
            ProgramError: the schedule gives a factor that is not finite.
        """
        factor = self._schedule(step)
        if not math.isfinite(factor):
            raise ProgramError(
                f"the schedule gives the factor {factor} at step {step + 1}: every weight would "
                "be lost"
            )
        factor *= lowered
        for group, base in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        return self._base_lrs[0] * factor

    def move(
        self,
        step: int,
        gradient: torch.Tensor,
        present: Sequence[int],
    ) -> None:
        """Has the optimizer update the weights, and brings them to all workers."""
        self.ownership.assign(gradient, present)
        # An optimizer may draw too; the generators are where the last own micro-batch left them.
        seed_generators(update_seed(self._seed, step), self._device)
        self.optimizer.step()
        self.ownership.share_weights()
