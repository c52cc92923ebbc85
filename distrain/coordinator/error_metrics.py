"""Metrics of numbers as sums over samples: squared, absolute and Huber errors, and R2."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from data_pipeline.dataset import Dataset
from data_pipeline.statistics import statistics_axis
from distrain.errors import ConfigError
from distrain.metric_names import Metric


def check_shapes(names: Sequence[str], outputs: torch.Tensor, target: torch.Tensor) -> None:
    """Refuses what would be broadcast.

    Raises:
        ConfigError: outputs and target differ in shape.
    """
    if outputs.shape != target.shape:
        raise ConfigError(
            f"{' and '.join(names)} compare outputs of shape {tuple(outputs.shape)} with a target "
            f"of shape {tuple(target.shape)}: the shapes must be the same"
        )


class NumberSums(Protocol):
    """Metrics whose words of several micro-batches add up."""

    num_float64: int
    num_int64: int

    def update(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        float64: torch.Tensor,
        int64: torch.Tensor,
    ) -> None:
        """Writes one micro-batch's words over what stands there."""
        ...

    def scores(self, float64: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """The metrics from the words' totals; NaN where no sample says anything."""
        ...


class Errors:
    """Means over all elements of squared, absolute and Huber errors, the last as torch's loss."""

    num_int64 = 1

    def __init__(self, metrics: Sequence[Metric]) -> None:
        """A sum for each."""
        self._metrics = metrics
        self.num_float64 = len(metrics)

    def update(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        float64: torch.Tensor,
        int64: torch.Tensor,
    ) -> None:
        """Sums in float64; outputs and target have one shape."""
        difference = outputs.double() - target.double()
        for place, one in enumerate(self._metrics):
            float64[place] = _errors(one, difference).sum()
        int64[0] = difference.numel()

    def scores(self, float64: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """Sums by elements."""
        means = (float64 / int64[0]).tolist()
        return {one.name: mean for one, mean in zip(self._metrics, means, strict=True)}


def _errors(one: Metric, difference: torch.Tensor) -> torch.Tensor:
    if one.stem == "mse":
        return difference.square()
    size = difference.abs()
    if one.stem == "mae":
        return size
    # |d| up to delta: d^2 / 2, beyond: delta (|d| - delta / 2).
    return torch.where(
        size <= one.value, difference.square() / 2, one.value * (size - one.value / 2)
    )


class R2:
    """The share of the targets' variance that is explained, by column, and then their mean.

    `1 - sum (y - f)^2 / sum (y - mean)^2`, as scikit-learn's r2_score: 1 or 0 for a target that is
    always the same, NaN for fewer than two samples. Words, each `(K,)`: the squared errors, and sum
    and squares of the targets less a `center` near their mean, so that the difference of the last
    two keeps its digits.
    """

    num_int64 = 1

    def __init__(self, center: torch.Tensor) -> None:
        """`center`: `(K,)`, float64, a number by column of the target."""
        self._center = center
        self.num_float64 = 3 * len(center)

    def update(
        self,
        outputs: torch.Tensor,
        target: torch.Tensor,
        float64: torch.Tensor,
        int64: torch.Tensor,
    ) -> None:
        """Sums in float64.

        Raises:
            ConfigError: the target has other columns.
        """
        columns = len(self._center)
        if target[:1].numel() not in (0, columns):
            raise ConfigError(
                f"r2 knows {columns} numbers a sample from the data set's target, and is given "
                f"targets of shape {tuple(target.shape)}"
            )
        outputs, target = outputs.double().view(-1, columns), target.double().view(-1, columns)
        centered = target - self._center.to(target.device)
        float64[:columns] = (target - outputs).square().sum(0)
        float64[columns : 2 * columns] = centered.sum(0)
        float64[2 * columns :] = centered.square().sum(0)
        int64[0] = len(target)

    def scores(self, float64: torch.Tensor, int64: torch.Tensor) -> dict[str, float]:
        """The mean over the columns."""
        unexplained, sums, squares = float64.view(3, -1)
        if int64[0] < 2:
            return {"r2": float("nan")}
        spread = squares - sums.square() / int64[0]
        # What rounding leaves of a target that never changes.
        rest = torch.finfo(torch.float64).eps * int64[0] * squares
        same = torch.where(unexplained == 0, 1.0, 0.0).double()
        by_column = torch.where(spread <= rest, same, 1 - unexplained / spread)
        return {"r2": float(by_column.mean())}


def center_of(dataset: Dataset, name: str) -> torch.Tensor | None:
    """The training part's mean of each number of a column: `(K,)`, float64, 0 where it has none.

    None for sequences, whose rows differ in length.
    """
    column = dataset.column(name)
    if column.is_ragged:
        return None
    statistics = dataset.statistics.get(name)
    mean = np.array(statistics.mean if statistics and statistics.mean else 0.0, np.float64)
    axis = statistics_axis(column.shape)
    if axis is not None and mean.ndim:
        mean = mean.reshape([-1 if at == axis else 1 for at in range(1, len(column.shape) + 1)])
    return torch.from_numpy(np.broadcast_to(mean, column.shape or (1,)).reshape(-1).copy())
