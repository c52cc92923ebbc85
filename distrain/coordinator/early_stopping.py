"""When to stop before the last epoch: a rule, and a state that moves by it. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from distrain.coordinator.monitor import MODES, Mode, beats, settled_mode
from distrain.errors import ConfigError


@dataclass(frozen=True)
class EarlyStopping:
    """Stops once `patience` epochs in a row (one at least) brought no improvement, as Keras does.

    Attributes:
        monitor: `loss`, a metric, or one of the validation set's: `val_loss`, `val_accuracy`.
        patience: Epochs without improvement that are borne.
        min_delta: A change counts only if it exceeds this.
        mode: Whether less or more is better; "auto" takes less for losses and errors.
        restore_best: End with the weights of the best epoch, stopped early or not.
    """

    monitor: str = "val_loss"
    patience: int = 0
    min_delta: float = 0.0
    mode: Mode = "auto"
    restore_best: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        in_range = self.patience >= 0 and self.min_delta >= 0
        if not in_range or self.mode not in MODES:
            raise ConfigError(
                f'{self}: patience and min_delta are 0 or more, mode "auto", "min" or "max"'
            )

    def settled(self, directions: Mapping[str, bool | None]) -> "EarlyStopping":
        """The same with "auto" read as "min" or "max"; see `settled_mode` for arguments, errors."""
        mode = settled_mode("early stopping watches", self.monitor, self.mode, directions)
        return replace(self, mode=mode)

    def improves(self, score: float, best: float) -> bool:
        """Whether a score beats the best so far by more than `min_delta`; NaN never does."""
        return beats(self.monitor, self.mode, score, best, self.min_delta)


@dataclass(frozen=True)
class Progress:
    """How the watched score has gone so far.

    Attributes:
        best: Best score, NaN before the first.
        best_epoch: Its epoch, counted from 1; 0 before the first.
        waited: Epochs since.
    """

    best: float = math.nan
    best_epoch: int = 0
    waited: int = 0


@dataclass(frozen=True)
class Verdict:
    """What follows from an epoch's scores."""

    progress: Progress
    improved: bool
    stop: bool


def judge(
    rule: EarlyStopping | None, progress: Progress, epoch: int, scores: Mapping[str, float]
) -> Verdict:
    """The verdict on an epoch, counted from 1; without a rule a run goes on to its last epoch."""
    if rule is None:
        return Verdict(progress, improved=False, stop=False)
    score = scores[rule.monitor]
    if not math.isnan(score) and (progress.best_epoch == 0 or rule.improves(score, progress.best)):
        return Verdict(Progress(score, epoch), improved=True, stop=False)
    waited = progress.waited + 1
    return Verdict(
        replace(progress, waited=waited), improved=False, stop=waited >= max(rule.patience, 1)
    )
