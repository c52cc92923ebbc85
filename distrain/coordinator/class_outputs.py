"""Outputs beside the classes that they should have named, place by place."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from data_pipeline.errors import DataError
from distrain.errors import ConfigError


@dataclass(frozen=True)
class ClassTask:
    """What outputs and targets of classes mean.

    Attributes:
        num_classes: C; 0 where the target has no names for them, and outputs alone tell.
        ignore_index: Places whose target has this value are passed over.
        threshold: For outputs with one value a sample: class 1 is predicted above it.
        probabilities: Whether such a value is a probability, and not a logit. Outputs by class
            are logits, or logarithms of probabilities.
    """

    num_classes: int
    ignore_index: int | None = None
    threshold: float = 0.0
    probabilities: bool = False


class ClassOutputs:
    """The outputs and classes of some samples; n is the number of places that count.

    What is asked for is computed once. Of outputs `(B, C, ...)` each of `...` is a place.
    """

    def __init__(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        task: ClassTask,
        names: Sequence[str],
    ) -> None:
        """Checks what has come.

        Args:
            outputs: `(B, C, ...)` scores by class, or `(B,)` or `(B, 1)` for two classes.
            target: `(B, ...)` class indices, or probabilities `(B, C, ...)` of which the largest
                counts, as where labels were mixed or smoothed.
            task: What they mean.
            names: The metrics, for messages.

        Raises:
            DataError: a target is no class.
            ConfigError: outputs and target don't go with each other.
        """
        mixed = target.is_floating_point() and target.ndim > 1
        mixed = mixed and target.shape[1] == task.num_classes > 1
        target = target.argmax(dim=1) if mixed else target
        self._outputs, self._task = outputs, task
        self.by_class = outputs.ndim == target.ndim + 1 and outputs.shape[1] > 1
        self._check_shapes(target, names)
        actual = target.reshape(-1)
        self._kept = None if task.ignore_index is None else actual != task.ignore_index
        self.actual = self._checked(self._of_kept(actual), names)

    @property
    def num_classes(self) -> int:
        """C: of the target, or else of the outputs."""
        return self._task.num_classes or (self._outputs.shape[1] if self.by_class else 2)

    @cached_property
    def predicted(self) -> torch.Tensor:
        """The class of the highest score, the first of several: `(n,)`, int64."""
        if self.by_class:
            return self._of_kept(self._outputs.argmax(dim=1).reshape(-1))
        return (self.scores > self._task.threshold).long()

    @cached_property
    def scores(self) -> torch.Tensor:
        """`(n, C)` by class, or `(n,)` where there is one score a place."""
        if self.by_class:
            places = self._outputs.movedim(1, -1)
            return self._of_kept(places.reshape(-1, self._outputs.shape[1]))
        return self._of_kept(self._outputs.reshape(-1))

    @cached_property
    def log_probabilities(self) -> torch.Tensor:
        """`(n, C)`, float64; of one score a place those of its two classes, `(n, 2)`."""
        scores = self.scores.double()
        if self.by_class:
            return torch.log_softmax(scores, dim=1)
        if self._task.probabilities:
            return torch.stack([torch.log1p(-scores), scores.log()], dim=1)
        logsigmoid = torch.nn.functional.logsigmoid
        return torch.stack([logsigmoid(-scores), logsigmoid(scores)], dim=1)

    @cached_property
    def top_probability(self) -> torch.Tensor:
        """The predicted class's: `(n,)`, float64."""
        scores = self.scores.double()
        if self.by_class:
            return torch.softmax(scores, dim=1).amax(1)
        of_one = scores if self._task.probabilities else scores.sigmoid()
        return torch.maximum(of_one, 1 - of_one)

    def _of_kept(self, rows: torch.Tensor) -> torch.Tensor:
        return rows if self._kept is None else rows[self._kept]

    def _check_shapes(self, target: torch.Tensor, names: Sequence[str]) -> None:
        outputs = self._outputs
        if self.by_class:
            fits = outputs.shape[:1] + outputs.shape[2:] == target.shape
        else:
            fits = outputs.numel() == target.numel()
            if fits and self._task.num_classes not in (0, 2):
                raise ConfigError(
                    f"the model gives one output a sample, and there are {self._task.num_classes} "
                    f"classes: {', '.join(names)} need an output for each"
                )
        if not fits:
            raise ConfigError(
                f"outputs of shape {tuple(outputs.shape)} don't go with a target of shape "
                f"{tuple(target.shape)}: scores (B, C, ...) for classes (B, ...) are wanted"
            )

    def _checked(self, actual: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
        if actual.is_floating_point() and not torch.equal(actual, actual.floor()):
            raise ConfigError(
                f"{', '.join(names)} want whole class numbers as targets, and these are not"
            )
        actual, classes = actual.long(), self.num_classes
        if actual.numel() and not 0 <= int(actual.min()) <= int(actual.max()) < classes:
            raise DataError(
                f"the target has labels from {int(actual.min())} to {int(actual.max())}; with "
                f"{classes} classes they must lie in [0, {classes})"
            )
        return actual
