"""Torch's optimizers, as far as they can keep the promise."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from distrain.checks import near_names
from distrain.describe import describe
from distrain.errors import ConfigError
from distrain.learn.parameter_groups import Groups, ParameterGroup, split_parameters

OptimizerFactory = Callable[[Any], torch.optim.Optimizer]
"""Makes an optimizer over the parameters, or the list of groups of them, that it is given."""


def checked_optimizer(
    make: OptimizerFactory,
    model: torch.nn.Module,
    groups: Sequence[ParameterGroup] = (),
    *,
    decay_norms_and_biases: bool = True,
) -> torch.optim.Optimizer:
    """The optimizer over the model's trainable parameters, in groups where those are asked for.

    Raises:
        ConfigError: there are none, or none for a group; or what was made is no optimizer, moves
            other tensors, passes over a group's settings or does not take them, or can't be run on
            a sum over micro-batches.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("no parameter of the model requires a gradient: nothing to train")
    split: Groups = []
    if groups or not decay_norms_and_biases:
        split = split_parameters(model, groups, decay_norms_and_biases=decay_norms_and_biases)
    # The optimizer may take the dicts for its own and fill them up, so it gets copies.
    optimizer = make([dict(group) for group in split] or trainable)
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
    for group in split:
        _check_settings(optimizer, {name: group[name] for name in group if name != "params"})
        _check_taken_up(optimizer, group)
    return optimizer


def _check_settings(optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> None:
    """Torch checks the values that all groups share, and takes any others without a look."""
    kind = type(optimizer)
    for name in settings:
        if name not in optimizer.defaults:
            raise ConfigError(
                f"a parameter group sets {name}, which {kind.__name__} does not take; "
                f"{near_names(name, optimizer.defaults)}"
            )
    if not kind.__module__.startswith("torch.optim."):
        return
    takes = inspect.signature(kind).parameters
    values = {name: v for name, v in {**optimizer.defaults, **settings}.items() if name in takes}
    try:
        kind([torch.nn.Parameter(torch.zeros(1))], **values)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"a parameter group with {dict(settings)}: {error}") from error


def _check_taken_up(optimizer: torch.optim.Optimizer, asked: Mapping[str, Any]) -> None:
    """An optimizer made from the parameters alone would train them all alike without a word."""
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for parameter in asked["params"]:
        for name, value in asked.items():
            if name == "params":
                continue
            if id(parameter) not in found or found[id(parameter)].get(name) != value:
                raise ConfigError(
                    "the function that makes the optimizer passes over a group's "
                    f"{name} = {value}: give the list of groups to torch's optimizer as it is"
                )
