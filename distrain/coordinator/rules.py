"""What a run is steered by; what goes by a score has its direction settled before it begins."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from distrain.bad_numbers import BadNumbers
from distrain.coordinator.checkpointing import Checkpoint
from distrain.coordinator.early_stopping import EarlyStopping
from distrain.coordinator.plateau import Plateau
from distrain.errors import ConfigError


@dataclass(frozen=True)
class Rules:
    """The rules of a run; None for one that it does without."""

    early_stopping: EarlyStopping | None = None
    checkpoint: Checkpoint | None = None
    plateau: Plateau | None = None
    bad_numbers: BadNumbers = field(default_factory=BadNumbers)

    def __post_init__(self) -> None:
        """Checks what a type checker may not have seen."""
        if not isinstance(self.bad_numbers, BadNumbers):
            raise ConfigError(
                f"bad_numbers is {self.bad_numbers!r}; give distrain.BadNumbers(non_finite=..., "
                "spike=...)"
            )

    def settled(self, directions: Mapping[str, bool | None]) -> "Rules":
        """The same, "auto" being read as "min" or "max".

        Args:
            directions: By score that each epoch will have: whether less is better, None where
                nobody says.

        Raises:
            ConfigError: a score is not measured, or has no direction.
        """
        early, kept, plateau = self.early_stopping, self.checkpoint, self.plateau
        return Rules(
            early_stopping=None if early is None else early.settled(directions),
            checkpoint=None if kept is None else kept.settled(directions),
            plateau=None if plateau is None else plateau.settled(directions),
            bad_numbers=self.bad_numbers,
        )
