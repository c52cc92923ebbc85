"""What an optimizer keeps from step to step: by name, copied or in pieces; and if it can be cut."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from distrain.errors import ConfigError

OptimizerState = tuple[dict[str, torch.Tensor], dict[str, float]]
"""An optimizer's state as tensors and numbers, each under `PARAMETER.NAME`."""

Held = dict[int, dict[str, Any]]
"""What one worker has of an optimizer's state: values by name, by its own count of parameters."""

Layouts = Mapping[str, tuple[Sequence[int], Sequence[int]]]
"""By parameter, its shape and the strides in which its elements fill their memory."""

_PIECE = "@"

ELEMENT_BY_ELEMENT = (
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.Adamax, torch.optim.Adagrad, torch.optim.Adadelta, torch.optim.RMSprop),
    *(torch.optim.ASGD, torch.optim.Rprop),
)
"""Torch's optimizers that look at no other element of a parameter, nor at its shape."""


def optimizer_tensors(optimizer: torch.optim.Optimizer, held: Held | None = None) -> OptimizerState:
    """What an optimizer holds, or a copy of what it held, by its own count of parameters.

    Raises:
        ConfigError: the optimizer keeps something that is neither tensor nor number.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, float] = {}
    found = optimizer.state_dict()["state"] if held is None else held
    for parameter, state in found.items():
        for name, value in state.items():
            if torch.is_tensor(value):
                tensors[f"{parameter}.{name}"] = value
            elif isinstance(value, (bool, int, float)):
                numbers[f"{parameter}.{name}"] = value
            elif value is not None:
                raise ConfigError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as {name!r}: a "
                    "checkpoint takes tensors and numbers; run without one, or with another "
                    "optimizer"
                )
    return tensors, numbers


def host_copy(optimizer: torch.optim.Optimizer) -> Held:
    """A copy of what an optimizer holds, in the host's memory."""
    return {
        parameter: {
            name: value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
            for name, value in state.items()
        }
        for parameter, state in optimizer.state_dict()["state"].items()
    }


def load_copy(optimizer: torch.optim.Optimizer, held: Held) -> None:
    """Sets what an optimizer holds, and nothing else of it; `held` stays as it is."""
    cloned = {
        parameter: {n: v.clone() if torch.is_tensor(v) else v for n, v in state.items()}
        for parameter, state in held.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": cloned, "param_groups": groups})


def piece_key(key: str, start: int) -> str:
    """The name of a piece of a state, `(num_elements,)`; `start` counts those before it."""
    return f"{key}{_PIECE}{start}"


def joined(parts: Sequence[OptimizerState], layouts: Layouts) -> OptimizerState:
    """The state of the whole optimizer from all workers' parts of it, however many they were.

    Raises:
        ValueError: there are too few pieces of something, or too many.
    """
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, float] = {}
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for own, more in parts:
        numbers |= more
        for key, tensor in own.items():
            whole, _, start = key.partition(_PIECE)
            if start:
                pieces.setdefault(whole, {})[int(start)] = tensor
            else:
                tensors[key] = tensor
    for key, by_start in pieces.items():
        flat = torch.cat([by_start[start] for start in sorted(by_start)])
        shape, strides = layouts[key.partition(".")[0]]
        if len(flat) != torch.Size(shape).numel():
            raise ValueError(f"{key}: pieces of {len(flat)} elements for a shape of {list(shape)}")
        tensors[key] = flat.as_strided(tuple(shape), tuple(strides)).contiguous()
    return tensors, numbers


def refuse_beyond_elements(optimizer: torch.optim.Optimizer) -> None:
    """Refuses what can't be cut (rule 15).

    Raises:
        ConfigError: the optimizer is none of those that are known to act element by element, and
            its class doesn't say so by an attribute `element_by_element = True`.
    """
    name = type(optimizer).__name__
    if type(optimizer) in ELEMENT_BY_ELEMENT or getattr(optimizer, "element_by_element", False):
        return
    known = ", ".join(sorted(one.__name__ for one in ELEMENT_BY_ELEMENT))
    raise ConfigError(
        f"shard_optimizer with {name}: a sharded optimizer sees pieces of parameters, and {name} "
        f"may look beyond an element. Use one of {known}; or, if yours does not, say so by the "
        "class attribute element_by_element = True; or shard_optimizer = false"
    )
