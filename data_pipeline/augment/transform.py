"""What a transform is: a function of the samples of one micro-batch and their random numbers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.draw import Draw
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.standardize import Standardization


@dataclass
class Samples:
    """The samples of one micro-batch, never of more, so that none depends on who else is loaded.

    Attributes:
        arrays: By column name, an array `(B, ...)`; a transform changes it or puts another there.
        columns: What each column holds in the data set.
        inputs: The name of the column that goes into the model.
        target: The name of the column to be learned; None where there is none.
    """

    arrays: dict[str, NDArray[Any]]
    columns: Mapping[str, Column]
    inputs: str
    target: str | None = None

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.arrays[self.inputs])


class Transform(Protocol):
    """Changes samples in place; any function with these arguments is one."""

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Changes `samples.arrays`; all randomness comes from `draw`."""
        ...


class InputTransform(ABC):
    """A transform of the inputs alone.

    Attributes:
        after_scaling: Whether it is run on the scaled float32 inputs, after all that are run on
            the raw values.
    """

    after_scaling: ClassVar[bool] = False

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Puts the changed inputs in the place of those that were there."""
        samples.arrays[samples.inputs] = self.changed(samples.arrays[samples.inputs], draw)

    @abstractmethod
    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """New rows `(B, ...)` for rows `(B, ...)`, which must be left as they are."""


@dataclass(frozen=True)
class AfterScaling:
    """Runs another transform, such as a function of yours, on the scaled inputs."""

    transform: Transform
    after_scaling: ClassVar[bool] = True

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Runs it."""
        self.transform(samples, draw)


@runtime_checkable
class Fitting(Protocol):
    """A transform that learns something of the training data before it can be run.

    Attributes:
        digest: SHA-256 of what it has learned; "" before.
    """

    digest: str

    def fitted(
        self, dataset: Dataset, column: str, standardization: Standardization | None = None
    ) -> Transform:
        """The transform that has learned it from a column, scaled by `standardization`."""
        ...


class Cropping(InputTransform):
    """A transform that gives pictures of any size one size: the only start for encoded ones."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""

    @abstractmethod
    def boxes(
        self, heights: NDArray[np.int64], widths: NDArray[np.int64], draw: Draw
    ) -> NDArray[np.float64]:
        """What is cut out of pictures of these sizes: `(B, 4)` of top, left, height, width."""


def is_after_scaling(transform: Transform) -> bool:
    """Whether a transform wants the scaled inputs."""
    return bool(getattr(transform, "after_scaling", False))


def check_images(name: str, rows: NDArray[Any]) -> None:
    """Refuses inputs that are no pictures `(B, C, H, W)`.

    Raises:
        DataError: always then; it names the transform.
    """
    if rows.ndim != 4:
        raise DataError(
            f"{name} works on images (C, H, W), but a row of this column has shape "
            f"{rows.shape[1:]}: leave {name} out, or convert the data to images"
        )


def check_fill(name: str, fill: float, dtype: np.dtype[Any]) -> None:
    """Refuses a value that the pictures' type can't hold.

    Raises:
        DataError: always then; it names the transform.
    """
    if dtype.kind not in "iu":
        return
    limits = np.iinfo(dtype)
    if not (limits.min <= fill <= limits.max and float(fill).is_integer()):
        raise DataError(
            f"{name}(fill={fill}) does not fit images of {dtype}: give a whole number from "
            f"{limits.min} to {limits.max}"
        )


def run(
    transforms: Sequence[tuple[int, Transform]],
    samples: Samples,
    *,
    seed: int,
    epoch: int,
    first_position: int,
) -> None:
    """Sends the samples of one micro-batch through transforms, each with its place in the list.

    Raises:
        ValueError: a transform lost or added samples.
    """
    count = len(samples)
    for place, transform in transforms:
        given: object = transform(samples, Draw(seed, epoch, place, first_position, count))  # type: ignore[func-returns-value]
        called = getattr(transform, "__name__", type(transform).__name__)
        if given is not None:
            raise ValueError(
                f"the transform {called} gave back {type(given).__name__}, which nothing looks at: "
                "it has to change samples.arrays in place, and give back nothing"
            )
        if samples.inputs not in samples.arrays:
            raise ValueError(f"the transform {called} took the inputs {samples.inputs!r} away")
        lengths = {name: len(array) for name, array in samples.arrays.items()}
        if set(lengths.values()) != {count}:
            raise ValueError(
                f"the transform {called} made columns of {lengths} samples from {count}: it must "
                "keep their number"
            )
