"""Activation checkpointing: chosen modules keep their inputs alone, and run again for gradients.

Names, classes and `state_dict` of the model stay as they are: an instance's own `forward` stands
before its class's. It is a bound method, so that a deep copy of the model gets one of its own.
"""

import types
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from distrain.checks import near_names
from distrain.errors import ConfigError


def checkpoint_activations(model: torch.nn.Module, patterns: Sequence[str]) -> list[str]:
    """Has the submodules whose names match any of the patterns (as file names do) run again.

    Returns:
        Their names. Of modules within each other the outermost is meant: `blocks.*` also matches
        what lies within a block.

    Raises:
        ConfigError: a pattern matches nothing, or a module's `forward` was replaced by others.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in modules):
            raise ConfigError(
                f"activation_checkpointing names {pattern!r}, which no submodule of the model is "
                f"called; {near_names(pattern, modules) if modules else 'it has none'}"
            )
    chosen: list[str] = []
    for name, module in modules.items():  # a module comes before those within it
        within = any(name.startswith(f"{outer}.") for outer in chosen)
        if within or not any(fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if "forward" in vars(module):
            raise ConfigError(
                f"activation_checkpointing names {name}, whose forward was replaced on the object "
                "itself: replace it in a subclass, or leave it out"
            )
        module.forward = types.MethodType(_forward, module)
        chosen.append(name)
    return chosen


def undo_checkpointing(model: torch.nn.Module) -> None:
    """Takes back what another trainer of this process has done to the same model."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) is _forward:
            del module.forward


def _forward(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The class's own, run again in the backward pass where there is one."""
    forward = type(module).forward
    if not (module.training and torch.is_grad_enabled()):
        return forward(module, *args, **kwargs)
    # A compiler has no use for contexts: what runs again there changes no buffer.
    more: dict[str, Any] = (
        {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, module)}
    )
    return checkpoint(partial(forward, module), *args, use_reentrant=False, **more, **kwargs)


def _contexts(
    module: torch.nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For the first run, and for the second."""
    return nullcontext(), _statistics_at_rest(module)


@contextmanager
def _statistics_at_rest(module: torch.nn.Module) -> Iterator[None]:
    """Running statistics were moved by the first run, and must not move twice: the second has
    copies of them.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _NormBase)]
    own = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        for name, buffer in norm._buffers.items():
            norm._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own, strict=True):
            norm._buffers.update(buffers)
