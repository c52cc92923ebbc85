"""The schedule of a job, as a frozen dataclass that checks itself. No torch here."""

from dataclasses import dataclass
from typing import Any, Literal

from distrain.checks import check_known
from distrain.errors import ConfigError

SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "linear": ("tau_steps", "final_factor"),
    "step": ("every_steps", "decay"),
    "cosine": ("warmup_steps", "total_steps", "final_factor"),
    "plateau": (
        *("monitor", "mode", "factor", "patience"),
        *("threshold", "threshold_mode", "cooldown", "min_factor"),
    ),
}
"""The schedules by name, each with the fields it takes."""


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The factor on the learning rate, by step, or by a score (plateau)."""

    name: str = "constant"
    """constant, linear, step, cosine or plateau."""
    tau_steps: int | None = None
    """linear: the step from which the rate stays constant."""
    final_factor: float | None = None
    """linear, cosine: the factor at the end."""
    every_steps: int | None = None
    """step: how often the rate is multiplied by the decay."""
    decay: float | None = None
    """step: the multiplier."""
    warmup_steps: int | None = None
    """cosine: steps of linear growth from 0."""
    total_steps: int | None = None
    """cosine: the step at which the final factor is reached; the run's last step unless given."""
    monitor: str | None = None
    """plateau: the score to go by, val_loss unless given."""
    mode: Literal["auto", "min", "max"] | None = None
    """plateau: whether less or more is better; auto, the default: less for
    losses and errors, more for the rest."""
    factor: float | None = None
    """plateau: what the rate is multiplied by; 0.1 unless given."""
    patience: int | None = None
    """plateau: epochs without improvement that are borne; 10 unless given."""
    threshold: float | None = None
    """plateau: change that counts only if exceeded; 1e-4 unless given."""
    threshold_mode: Literal["rel", "abs"] | None = None
    """plateau: threshold as a share of the best score (rel, the default) or
    in its own unit."""
    cooldown: int | None = None
    """plateau: epochs after a fall in which nothing is counted."""
    min_factor: float | None = None
    """plateau: the rate never falls below this share of the first."""

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are given, by name."""
        names = dict.fromkeys(name for takes in SCHEDULES.values() for name in takes)
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def __post_init__(self) -> None:
        """Checks names, and that the schedule takes what is given and is given what it needs."""
        check_known("schedule.name", self.name, SCHEDULES)
        for name in self.given:
            if name not in SCHEDULES[self.name]:
                takes = ", ".join(SCHEDULES[self.name]) or "no fields"
                raise ConfigError(f"schedule.{name} is not for {self.name}, which takes {takes}")
        for schedule, needed in (("linear", "tau_steps"), ("step", "every_steps")):
            if self.name == schedule and getattr(self, needed) is None:
                raise ConfigError(f"schedule.{needed} is missing: the schedule {schedule} needs it")
