"""Learning-rate schedules: pure functions from the step, counted from 0, to a factor on the rate.

A schedule knows nothing of workers or epochs, so that a resumed run goes on where it was.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from distrain.errors import ConfigError

Schedule = Callable[[int], float]
"""Any function from the step to the factor that every group's learning rate is multiplied by."""


@dataclass(frozen=True)
class Constant:
    """The factor is always 1."""

    def __call__(self, step: int) -> float:  # noqa: ARG002 - a schedule is called with the step
        """1."""
        return 1.0


@dataclass(frozen=True)
class Linear:
    """Linear annealing until step tau, then constant.

    e_k = (1 - a) e_0 + a e_tau with a = k / tau, and e_tau from k = tau on: Goodfellow, Bengio and
    Courville, "Deep Learning" (2016), equation 8.14; they suggest e_tau of about 1% of e_0.
    """

    tau_steps: int
    final_factor: float = 0.01

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check("Linear", tau_steps=self.tau_steps)
        _check_factor("Linear", self.final_factor)

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        a = min(step / self.tau_steps, 1.0)
        return (1.0 - a) + a * self.final_factor


@dataclass(frozen=True)
class Step:
    """The factor is multiplied by `decay` every `every_steps` steps."""

    every_steps: int
    decay: float = 0.1

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check("Step", every_steps=self.every_steps)
        _check_factor("Step", self.decay)

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        factor: float = self.decay ** (step // self.every_steps)
        return factor


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `final_factor`, which stays.

    f + (1 - f) (1 + cos(pi t)) / 2 with t from 0 to 1: Loshchilov and Hutter, "SGDR" (2017),
    without restarts. Step k of the warm-up has the factor (k + 1) / warmup_steps, so that the
    first step is not lost.
    """

    total_steps: int
    warmup_steps: int = 0
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check("Cosine", total_steps=self.total_steps)
        _check_factor("Cosine", self.final_factor)
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise ConfigError(
                f"Cosine: warmup_steps is {self.warmup_steps}; it must lie in "
                f"[0, total_steps = {self.total_steps}]"
            )

    def __call__(self, step: int) -> float:
        """The factor at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if step >= self.total_steps:
            return self.final_factor
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        fall = (1.0 + math.cos(math.pi * progress)) / 2.0
        return self.final_factor + (1.0 - self.final_factor) * fall


def _check(schedule: str, **steps: int) -> None:
    for name, value in steps.items():
        if value < 1:
            raise ConfigError(f"{schedule}: {name} is {value}; it must be 1 or more")


def _check_factor(schedule: str, factor: float) -> None:
    if not 0.0 <= factor <= 1.0:
        raise ConfigError(f"{schedule}: a factor of {factor} was given; it must lie in [0, 1]")
