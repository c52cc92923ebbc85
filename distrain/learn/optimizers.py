"""Torch's optimizers, as far as they can keep the promise."""

from collections.abc import Callable, Iterable

import torch

from distrain.describe import describe
from distrain.errors import ConfigError

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
"""Makes an optimizer over the parameters that it is given."""


def checked_optimizer(make: OptimizerFactory, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters.

    Raises:
        ConfigError: there are none; or what was made is no optimizer, moves other tensors, or
            can't be run on a sum over micro-batches.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("no parameter of the model requires a gradient: nothing to train")
    optimizer = make(trainable)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"the function that makes the optimizer returned {describe(optimizer)}: return a "
            "torch.optim.Optimizer over the parameters that it is given"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError(
            "LBFGS evaluates the loss several times a step along a line, which no sum over "
            "micro-batches covers: use a first-order optimizer"
        )
    known = {id(parameter) for parameter in trainable}
    given = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if any(id(parameter) not in known for parameter in given):
        raise ConfigError(
            "the optimizer moves tensors that are no trainable parameters of the model, so "
            "their gradients are not summed: make them parameters of the model"
        )
    return optimizer
