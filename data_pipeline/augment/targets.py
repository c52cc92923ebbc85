"""Changes of what is to be learned: soft labels, wrong labels, noisy numbers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import require_at_least, require_probability
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.stream import normals
from data_pipeline.augment.transform import Samples
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column


@dataclass(frozen=True)
class LabelSmoothing:
    """Labels become `(1 - amount) * label + amount / classes`, of one-hot or of soft labels.

    Szegedy et al., 2016, "Rethinking the Inception architecture", 7.
    """

    amount: float

    def __post_init__(self) -> None:
        """Refuses what is no part of 1."""
        require_probability(self, "amount")

    def __call__(self, samples: Samples, draw: Draw) -> None:  # noqa: ARG002
        """Puts float32 `(B, num_classes)` in the place of the labels; nothing is drawn."""
        name, column = target_of("LabelSmoothing", samples)
        labels = probabilities("LabelSmoothing", samples)
        uniform = np.float32(self.amount / len(column.classes))
        samples.arrays[name] = labels * np.float32(1.0 - self.amount) + uniform


@dataclass(frozen=True)
class LabelNoise:
    """Each label is with the given probability replaced by another class, all equally likely.

    Uniform (symmetric) label noise, as in Patrini et al., 2017, "Making deep neural networks
    robust to label noise".
    """

    probability: float

    def __post_init__(self) -> None:
        """Refuses what is no probability."""
        require_probability(self, "probability")

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Changes labels `(B,)` of whole numbers; their dtype stays."""
        name, column = target_of("LabelNoise", samples)
        labels = samples.arrays[name]
        classes = len(column.classes)
        if column.kind != "label" or labels.dtype.kind not in "iu":
            raise DataError(
                f"LabelNoise changes labels that are classes, but column {name!r} is a "
                f"{column.kind} of {labels.dtype} here: put it before what makes labels soft, or "
                "use TargetNoise for numbers"
            )
        if classes < 2:
            raise DataError(f"LabelNoise needs two classes, but column {name!r} has {classes}")
        chosen = draw.happens(self.probability)
        others = (labels.astype(np.int64) + draw.integers(1, classes - 1)) % classes
        samples.arrays[name] = np.where(chosen, others, labels).astype(labels.dtype)


@dataclass(frozen=True)
class TargetNoise:
    """Adds normal noise of mean 0 and standard deviation `std` to targets that are numbers."""

    std: float

    def __post_init__(self) -> None:
        """Refuses a negative deviation."""
        require_at_least(self, "std", 0)

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Puts float32 `(B,)` or `(B, ...)` in the place of the numbers."""
        name, column = target_of("TargetNoise", samples)
        if column.kind not in ("number", "tensor"):
            raise DataError(
                f"TargetNoise changes numbers, but column {name!r} is a {column.kind}: use "
                "LabelNoise for labels"
            )
        values = samples.arrays[name].astype(np.float32)
        noise = normals(draw.words(1)[:, 0], values.shape[1:])
        samples.arrays[name] = values + noise * np.float32(self.std)


def target_of(transform: str, samples: Samples) -> tuple[str, Column]:
    """Name and description of the target.

    Raises:
        DataError: there is none; it names the transform.
    """
    if samples.target is None:
        raise DataError(f"{transform} changes the target, but this run has none: leave it out")
    return samples.target, samples.columns[samples.target]


def probabilities(transform: str, samples: Samples) -> NDArray[np.float32]:
    """The target's labels as probabilities, float32 `(B, num_classes)`; soft ones as they are.

    Raises:
        DataError: the target is no label, or was made something else.
    """
    name, column = target_of(transform, samples)
    labels, classes = samples.arrays[name], len(column.classes)
    if column.kind != "label":
        raise DataError(
            f"{transform} works on labels, but column {name!r} is a {column.kind}: leave it out"
        )
    if labels.dtype.kind in "iu" and labels.ndim == 1:
        soft = np.zeros((len(labels), classes), np.float32)
        soft[np.arange(len(labels)), labels] = 1.0
        return soft
    if labels.dtype.kind != "f" or labels.shape[1:] != (classes,):
        raise DataError(
            f"{transform} wants labels (B,) or probabilities (B, {classes}), but column {name!r} "
            f"is {labels.dtype} of shape {labels.shape} here"
        )
    return labels.astype(np.float32)
