"""Lower learning rates where a score no longer improves: a rule, and a state that moves by it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from distrain.coordinator.monitor import MODES, Mode, settled_mode
from distrain.errors import ConfigError
from distrain.metric_names import is_error


@dataclass(frozen=True)
class Plateau:
    """A schedule that multiplies the rates by `factor` after `patience` epochs in vain.

    What torch.optim.lr_scheduler.ReduceLROnPlateau does, by its rules and with its defaults but
    for `eps`, judged at each epoch's end:
    https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html.
    Its state is part of the run's.

    Attributes:
        monitor: `loss`, a metric, or one of a validation set's: `val_loss`, `val_accuracy`.
        factor: What all groups' rates are multiplied by.
        patience: Epochs without improvement that are borne; the rates fall after the next.
        threshold: A change counts only if it exceeds this, as a share of the best score ("rel")
            or in its own unit ("abs").
        threshold_mode: Which of them.
        cooldown: Epochs after a fall in which nothing is counted.
        min_factor: The rates never fall below this share of what they began with.
        mode: Whether less or more is better; "auto" takes less for losses and errors.
    """

    monitor: str = "val_loss"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: int = 0
    min_factor: float = 0.0
    mode: Mode = "auto"

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0.0 < self.factor < 1.0 or not 0.0 <= self.min_factor <= 1.0:
            raise ConfigError(f"{self}: factor lies between 0 and 1, min_factor in [0, 1]")
        if not (self.patience >= 0 and self.cooldown >= 0 and 0.0 <= self.threshold < math.inf):
            raise ConfigError(f"{self}: patience, cooldown and threshold are 0 or more")
        if self.threshold_mode not in ("rel", "abs") or self.mode not in MODES:
            raise ConfigError(
                f'{self}: threshold_mode is "rel" or "abs", and mode "auto", "min" or "max"'
            )

    def __call__(self, step: int) -> float:  # noqa: ARG002 - a schedule is called with the step
        """1: by steps nothing changes."""
        return 1.0

    def settled(self, directions: Mapping[str, bool | None]) -> "Plateau":
        """The same with "auto" read as "min" or "max"; see `settled_mode` for arguments, errors."""
        mode = settled_mode("the plateau schedule goes by", self.monitor, self.mode, directions)
        return replace(self, mode=mode)

    def improves(self, score: float, best: float) -> bool:
        """Whether a score beats the best so far by more than the threshold; NaN never does."""
        less = self.mode == "min" or (self.mode == "auto" and is_error(self.monitor))
        if math.isnan(best):
            # torch begins with an infinite best, which another infinity does not beat.
            return score < math.inf if less else score > -math.inf
        sign = -1.0 if less else 1.0
        if self.threshold_mode == "rel":
            best *= 1.0 + sign * self.threshold
        else:
            best += sign * self.threshold
        return score < best if less else score > best


@dataclass(frozen=True)
class Fall:
    """Where a plateau schedule stands.

    Attributes:
        factor: On all rates, from the next step on.
        best: Best score, NaN before the first.
        waited: Epochs without improvement that were counted.
        cooling: Epochs left in which nothing is counted.
    """

    factor: float = 1.0
    best: float = math.nan
    waited: int = 0
    cooling: int = 0

    def after(self, rule: Plateau | None, scores: Mapping[str, float]) -> "Fall":
        """The state after an epoch with these scores; without a rule nothing changes."""
        if rule is None:
            return self
        improved = rule.improves(scores[rule.monitor], self.best)
        best = scores[rule.monitor] if improved else self.best
        waited, cooling = 0 if improved else self.waited + 1, self.cooling
        if cooling:
            waited, cooling = 0, cooling - 1
        if waited <= rule.patience:
            return Fall(self.factor, best, waited, cooling)
        return Fall(max(self.factor * rule.factor, rule.min_factor), best, 0, rule.cooldown)

    @property
    def text(self) -> str:
        """Says it to a person."""
        return f"no better score: from now on learning rates are {self.factor:.4g} of the first"

    def to_json(self) -> dict[str, Any]:
        """Plain values; the best score as text, since it may be infinite."""
        return {**vars(self), "best": repr(self.best)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fall":
        """The state that `to_json` gave."""
        return cls(**{**values, "best": float(values["best"])})
