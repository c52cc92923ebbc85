"""The stages that a recipe's batches go through: heads, raw transforms, scaling, late transforms.

The first transforms of the inputs, and the scaling where no other is left, are done by the head in
one pass over the batch, where they are of a kind that can be; the bits are the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data_pipeline.augment.transform import Cropping, Transform, check_fill
from data_pipeline.augment.windows import Flip, Shift
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.heads import Crops, Gathering, Head, Lengths, Padding, Windows
from data_pipeline.ragged import LENGTHS
from data_pipeline.recipe import Recipe
from data_pipeline.standardize import Standardization

Placed = tuple[int, Transform]
"""A transform and its place in the recipe's list, which its random numbers depend on."""


@dataclass(frozen=True)
class Stages:
    """What is done with the rows of a span, in this order.

    Attributes:
        heads: By column, how its first array is filled.
        raw: Transforms of raw values that no head has done.
        late_scaling: By column, the scaling that no head has done.
        scaled: Transforms of scaled values.
        padded: Columns that come with lengths, and with zeros behind each row.
    """

    heads: Mapping[str, Head]
    raw: list[Placed]
    late_scaling: Mapping[str, Standardization]
    scaled: list[Placed]
    padded: tuple[str, ...]

    @property
    def go_on(self) -> bool:
        """Whether anything comes after the heads."""
        return bool(self.raw or self.late_scaling or self.scaled)


def stages_of(dataset: Dataset, recipe: Recipe) -> Stages:
    """Plans the stages.

    Raises:
        DataError: a column is missing, or encoded pictures have nothing that gives them one size.
    """
    for name in recipe.pad_to:
        if dataset.column(name).kind not in ("sequence", "text"):
            raise DataError(
                f"pad_to names {name!r}, but of {dataset.name} it is a "
                f"{dataset.column(name).kind}: only sequences and texts are padded"
            )
    first, left = _input_head(dataset, recipe)
    # A transform of raw values may look at any column: nothing is scaled before the last of them.
    scalings = {name: s for name, s in recipe.standardized.items() if name in recipe.columns}
    early = {} if left else scalings
    heads: dict[str, Head] = {}
    for name in recipe.columns:
        column = dataset.column(name)
        if name == recipe.inputs and first is not None:
            heads[name] = first
        elif column.kind in ("sequence", "text"):
            if name + LENGTHS in recipe.columns:
                raise DataError(
                    f"column {name + LENGTHS!r} of {dataset.name} is what the lengths of {name!r} "
                    "are called: leave one of them out, or write the data set with another name"
                )
            steps = max(recipe.pad_to.get(name, column.max_length), 1)
            heads[name] = Padding(dataset, name, early.get(name), steps)
            heads[name + LENGTHS] = Lengths(dataset, name, steps)
        elif column.kind == "image":
            raise DataError(
                f"column {name!r} of {dataset.name} holds encoded pictures of any size, and "
                "nothing gives them one: let the transforms begin with Resize, CenterCrop or "
                "RandomResizedCrop, or convert the data with --size"
            )
        else:
            heads[name] = Gathering(dataset, name, early.get(name))
    padded = tuple(name for name in recipe.columns if name + LENGTHS in heads)
    return Stages(heads, left, scalings if left else {}, recipe.scaled(), padded)


def _input_head(dataset: Dataset, recipe: Recipe) -> tuple[Head | None, list[Placed]]:
    """A head that does the first transforms of the inputs, or None; and those that are left."""
    raw, name = recipe.raw(), recipe.inputs
    if name is None or name not in recipe.columns or not raw:
        return None, raw
    column, scaling = dataset.column(name), recipe.standardized.get(name)
    (place, first), rest = raw[0], raw[1:]
    if column.kind == "image" and isinstance(first, Cropping):
        flip, rest = _leading_flip(rest)
        head = Crops(dataset, name, None if rest else scaling, recipe.seed, (place, first), flip)
        return head, rest
    is_picture = column.kind == "tensor" and len(column.shape) == 3
    if scaling is None or not is_picture or scaling.axis not in (None, 1):
        return None, raw
    shift = None
    if type(first) is Shift and first.fill_mode == "constant":
        check_fill("Shift", first.fill, np.dtype(column.dtype))
        shift = (place, first)
    flip, rest = _leading_flip(rest if shift else raw)
    if rest:
        return None, raw
    return Windows(dataset, name, scaling, recipe.seed, shift, flip), []


def _leading_flip(transforms: list[Placed]) -> tuple[tuple[int, Flip] | None, list[Placed]]:
    if transforms and type(transforms[0][1]) is Flip:
        return (transforms[0][0], transforms[0][1]), transforms[1:]
    return None, transforms
