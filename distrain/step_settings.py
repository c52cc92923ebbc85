"""What a step does beside the model's own work, chosen once for a run."""

from dataclasses import dataclass, field
from typing import Literal

from distrain.errors import ConfigError
from distrain.learn.schedules import Schedule
from distrain.parallel.summing import SumOptions
from distrain.update import Clip


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """All but the last two are part of a run's result.

    Attributes:
        target: The column that metrics compare the outputs with.
        seed: Of all draws in a step.
        batch_norm: Whose statistics normalise: a micro-batch's, or the global batch's.
        scales_loss: float16: the loss is scaled, and a step that overflows is skipped.
        inspect_every: Norms are taken of each parameter every so many steps.
        check_every: The workers' states are compared every so many steps.
    """

    target: str
    seed: int
    schedule: Schedule
    clip: Clip
    sums: SumOptions = field(default_factory=SumOptions)
    batch_norm: Literal["micro", "sync"] = "micro"
    scales_loss: bool = False
    inspect_every: int | None = None
    check_every: int | None = None

    def __post_init__(self) -> None:
        """Checks what a type checker may not have seen."""
        if self.batch_norm not in ("micro", "sync"):
            raise ConfigError(f'batch_norm is {self.batch_norm!r}; give "micro" or "sync"')
