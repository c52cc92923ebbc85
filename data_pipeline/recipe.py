"""How the rows of a data set become the columns of a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from data_pipeline.augment.transform import Cropping, Fitting, Transform, is_after_scaling
from data_pipeline.dataset import Dataset
from data_pipeline.sampling import Kind, Sampling
from data_pipeline.standardize import Standardization


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the rows of a data set become the columns of a batch.

    Attributes:
        columns: Names of the columns wanted. A sequence or text comes as a padded tensor, and the
            lengths of its rows as a column `NAME_lengths`, int64.
        seed: Of order and transforms.
        sampling: Which rows the positions of an epoch stand for.
        inputs: The column that transforms apply to.
        target: The column to be learned, which some transforms change as well; "balanced" sampling
            goes by it.
        transforms: Run in turn on the raw values, those that want it on the scaled ones.
        standardized: By column, the scaling to float32.
        micro_batch: How many samples a transform is given at a time, counted from the first of a
            span; None gives it the whole span.
        pad_to: By sequence or text, the steps to pad to and to cut at, where that is not to be the
            longest row of the data set.
    """

    columns: tuple[str, ...]
    seed: int = 0
    sampling: Kind = "stored"
    inputs: str | None = None
    target: str | None = None
    transforms: tuple[Transform, ...] = ()
    standardized: Mapping[str, Standardization] = field(default_factory=dict)
    micro_batch: int | None = None
    pad_to: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses transforms that would apply to nothing."""
        if self.transforms and self.inputs not in self.columns:
            raise ValueError(
                f"transforms are given, but the column they apply to ({self.inputs!r}) is not "
                f"among {self.columns}"
            )
        for name, steps in self.pad_to.items():
            if name not in self.columns or steps < 1:
                raise ValueError(
                    f"pad_to gives {name!r} {steps} steps; give 1 or more to one of {self.columns}"
                )
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}; it must be 1 or more")

    def sampled(self, dataset: Dataset) -> Sampling:
        """The rows that positions stand for."""
        return Sampling(dataset, self.sampling, seed=self.seed, label=self.target)

    def fitted(self, dataset: Dataset) -> "Recipe":
        """With what learns from training data having done so; what has already stays."""
        scaling = self.standardized.get(self.inputs or "")
        fitted = [
            one.fitted(dataset, self.inputs or "", scaling)
            if isinstance(one, Fitting) and not one.digest
            else one
            for one in self.transforms
        ]
        return replace(self, transforms=tuple(fitted))

    def raw(self) -> list[tuple[int, Transform]]:
        """The transforms of raw values, each with its place in the list."""
        listed = enumerate(self.transforms)
        return [(place, one) for place, one in listed if not is_after_scaling(one)]

    def scaled(self) -> list[tuple[int, Transform]]:
        """The transforms of scaled values, each with its place in the list."""
        listed = enumerate(self.transforms)
        return [(place, one) for place, one in listed if is_after_scaling(one)]


def training_transforms(
    prepare: Sequence[Transform], augment: Sequence[Transform]
) -> tuple[Transform, ...]:
    """What training samples go through: what all do, and then what they alone do.

    Where that begins with a crop of its own, it takes the place of the one in `prepare`: the one
    gives every picture its size for measuring, the other a random part of it for learning.
    """
    crops = [place for place, one in enumerate(prepare) if isinstance(one, Cropping)]
    if crops and augment and isinstance(augment[0], Cropping):
        return (*prepare[: crops[0]], augment[0], *prepare[crops[0] + 1 :], *augment[1:])
    return (*prepare, *augment)
