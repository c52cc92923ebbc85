"""What is done with one micro-batch, in training, in evaluation and for predictions."""

from dataclasses import dataclass

import torch

from distrain.learn.losses import SummedLoss
from distrain.step import Columns, MicroBatchResult, MicroBatchStep


@dataclass(frozen=True, kw_only=True)
class MicroBatchWork:
    """The model is called with one column and the loss with another; or a function does it all.

    Attributes:
        loss: Of the outputs and the target.
        inputs: The column that the model is called with.
        target: The column that the loss compares with.
        own: A function of the user's that is given all columns, in place of this.
    """

    loss: SummedLoss
    inputs: str
    target: str
    own: MicroBatchStep | None

    @property
    def step(self) -> MicroBatchStep:
        """For training, and for an evaluation."""
        return self.own or self._standard

    @property
    def prediction(self) -> MicroBatchStep:
        """For outputs alone."""
        return self.own or self._outputs_only

    def _standard(self, model: torch.nn.Module, columns: Columns) -> MicroBatchResult:
        outputs = model(columns[self.inputs])
        loss_sum, weight = self.loss(outputs, columns[self.target])
        return loss_sum, weight, outputs

    def _outputs_only(self, model: torch.nn.Module, columns: Columns) -> MicroBatchResult:
        """A standard step without its loss: a prediction needs no target."""
        return torch.zeros(()), 0.0, model(columns[self.inputs])
