"""What a run brought, for those who asked for it."""

from dataclasses import dataclass
from pathlib import Path

from distrain.coordinator.observers import EpochRecord


@dataclass(frozen=True)
class History:
    """What a run brought.

    Attributes:
        epochs: A record each.
        best_epoch: By early stopping's score, counted from 1; None without early stopping.
        result: The file with the final weights; None for a run without a folder.
    """

    epochs: tuple[EpochRecord, ...]
    best_epoch: int | None = None
    result: Path | None = None

    def __getitem__(self, name: str) -> list[float]:
        """A score by epoch: `history["val_loss"]`.

        Raises:
            KeyError: this run has not measured it; names those that it has.
        """
        if self.epochs and name not in self.epochs[0].scores:
            raise KeyError(f"{name!r}; this run has measured {', '.join(self.epochs[0].scores)}")
        return [record.scores[name] for record in self.epochs]
