"""Names for objects in a run's identity and in messages: the same in every process."""

import dataclasses
import functools
from typing import Any

import torch


def describe(thing: object) -> str:
    """A text that is the same in every process: classes, functions, plain values; no addresses."""
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return repr(thing)
    if isinstance(thing, (list, tuple)):
        return f"({', '.join(map(describe, thing))})"
    if isinstance(thing, functools.partial):
        return f"partial({_arguments(thing.func, *thing.args, **thing.keywords)})"
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
        return f"{type(thing).__qualname__}({_arguments(**fields)})"
    if isinstance(thing, (torch.nn.Module, torch.optim.Optimizer)):
        return f"{type(thing).__name__}({_plain_attributes(thing)})"
    name = getattr(thing, "__qualname__", None)
    return f"{getattr(thing, '__module__', '')}.{name}" if name else type(thing).__qualname__


def _arguments(*args: object, **keywords: object) -> str:
    named = [f"{name}={describe(value)}" for name, value in keywords.items()]
    return ", ".join([*map(describe, args), *named])


def _plain_attributes(module: object) -> str:
    found: dict[str, Any] = {}
    for name, value in sorted(vars(module).items()):
        if not name.startswith("_") and isinstance(value, (bool, int, float, str, tuple, list)):
            found[name] = describe(value) if isinstance(value, (tuple, list)) else value
    if isinstance(module, torch.nn.Module):
        found |= {name: buffer.tolist() for name, buffer in module.named_buffers()}
    return ", ".join(f"{name}={value!r}" for name, value in found.items() if name != "training")
