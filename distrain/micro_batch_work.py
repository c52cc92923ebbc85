"""What is done with one micro-batch, in training, in evaluation and for predictions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_pipeline.dataset import Dataset
from distrain.coordinator.error_metrics import center_of
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.torch_metric import TorchMetric
from distrain.errors import ConfigError
from distrain.learn.losses import SummedLoss
from distrain.micro_batch import Columns, MicroBatchResult, MicroBatchStep
from distrain.precision import Precision, full


@dataclass(frozen=True)
class MicroBatchWork:
    """The model is called with one column and the loss with another; or a function does it all.

    Attributes:
        loss: Of the outputs and the target.
        inputs: The column that the model is called with.
        target: The column that the loss compares with.
        own: A function of the user's that is given all columns, in place of this.
        precision: How either of them is computed, on `device`.
    """

    loss: SummedLoss
    inputs: str
    target: str
    own: MicroBatchStep | None
    precision: Precision
    device: torch.device

    @property
    def step(self) -> MicroBatchStep:
        """For training, and for an evaluation."""
        return self.precision.wrapped(self.own or self._standard, self.device)

    @property
    def prediction(self) -> MicroBatchStep:
        """For outputs alone."""
        return self.precision.wrapped(self.own or self._outputs_only, self.device)

    def metric_set(self, chosen: Sequence[str | TorchMetric], dataset: Dataset) -> MetricSet:
        """What is measured of outputs against a data set's target.

        Raises:
            ConfigError: a metric is unknown, or does not go with the target.
        """
        center = center_of(dataset, self.target) if "r2" in chosen else None
        if "r2" in chosen and center is None:
            raise ConfigError(
                f"r2 needs as many numbers in each sample, and {self.target} has sequences: take "
                "mse, mae or huber"
            )
        return MetricSet(
            chosen,
            len(dataset.column(self.target).classes),
            ignore_index=self.loss.ignore_index,
            threshold=self.loss.threshold,
            probabilities=self.loss.probabilities,
            center=center,
        )

    def _standard(self, model: torch.nn.Module, columns: Columns) -> MicroBatchResult:
        outputs = full(model(columns[self.inputs]))
        loss_sum, weight = self.loss(outputs, columns[self.target])
        return loss_sum, weight, outputs

    def _outputs_only(self, model: torch.nn.Module, columns: Columns) -> MicroBatchResult:
        """A standard step without its loss: a prediction needs no target."""
        return torch.zeros(()), 0.0, model(columns[self.inputs])
