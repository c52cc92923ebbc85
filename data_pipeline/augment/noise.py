"""Noise on the inputs."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import require_at_least
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.stream import normals
from data_pipeline.augment.transform import InputTransform
from data_pipeline.errors import DataError


@dataclass(frozen=True)
class GaussianNoise(InputTransform):
    """Adds normal noise of mean 0 and standard deviation `std` to each value.

    Keras' layer of the same name. It comes after the scaling, so that `std` counts in standard
    deviations of the data.
    """

    std: float
    after_scaling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses a negative deviation."""
        require_at_least(self, "std", 0)

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:
        """float32 `(B, ...)` of any shape."""
        if rows.dtype != np.float32:
            raise DataError(
                f"GaussianNoise works on float32, but the inputs are {rows.dtype} here: leave it "
                "out for tokens"
            )
        noise = normals(draw.words(1)[:, 0], rows.shape[1:])
        noise *= np.float32(self.std)
        noise += rows
        return noise
