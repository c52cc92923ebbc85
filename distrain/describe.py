"""Names for objects in a run's identity and in messages: the same in every process."""

import dataclasses
import dis
import enum
import functools
import hashlib
import logging
import types
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

import numpy as np
import torch

from data_pipeline.dataset import Dataset

_LONGEST = 2_000
"""Letters; of a longer description its SHA-256 is given."""

_DEEPEST = 40
"""Objects within objects; what lies deeper is `...` as well."""

_PLAIN = (bool, int, float, complex, str, bytes, type(...), np.generic)
"""What its `repr` says all about."""

_WRAPPED = frozenset(["__wrapped__"])
"""What a function that wraps another closes over as well."""

_OF_MODULES = frozenset(vars(torch.nn.Module()))
"""What torch keeps in a module for itself."""


def described(**objects: object) -> dict[str, str]:
    """What `describe` says of each."""
    return {name: describe(value) for name, value in objects.items()}


def describe(thing: object) -> str:
    """A text that is the same in every process, and another for other settings; no addresses.

    Functions have a digest of their code, their defaults, what they close over and their name,
    those of torch the name alone; objects the name of their class and their attributes; arrays a
    digest of their bytes. What a function takes from its module is not seen, nor what it binds
    with `nonlocal`, nor a class's code.
    """
    return _Description().text(thing)


_Array = np.ndarray[Any, Any] | torch.Tensor


class _Description:
    """Describes what lies within one thing: an object within itself is `...`."""

    def __init__(self) -> None:
        """Nothing is described yet."""
        self._within: list[int] = []
        # The objects are kept with their texts, since an id may be used again without them.
        self._known: dict[int, tuple[object, str]] = {}

    def text(self, thing: object) -> str:
        """The text of a thing, or of one within it."""
        if isinstance(thing, enum.Enum):
            return f"{type(thing).__qualname__}.{thing.name}"
        if isinstance(thing, np.generic) and not isinstance(thing.item(), np.generic):
            return self.text(thing.item())
        if thing is None or isinstance(thing, _PLAIN):
            return _short("", repr(thing))
        if id(thing) in self._within:
            return "..."
        if id(thing) not in self._known:
            self._within.append(id(thing))
            found = self._whole(thing) if len(self._within) <= _DEEPEST else "..."
            self._within.pop()
            self._known[id(thing)] = thing, _short(type(thing).__qualname__, found)
        return self._known[id(thing)][1]

    def _whole(self, thing: object) -> str:
        ways: tuple[tuple[Any, Callable[[Any], str]], ...] = (
            ((list, tuple), lambda values: f"({self._arguments(values, {})})"),
            (Mapping, self._mapping),
            (Set, lambda members: "{" + ", ".join(sorted(map(self._alone, members))) + "}"),
            ((np.ndarray, torch.Tensor), self._array),
            (functools.partial, self._partial),
            (types.FunctionType, self._function),
            ((types.MethodType, types.BuiltinMethodType), self._method),
            (types.ModuleType, lambda module: str(module.__name__)),
            (Dataset, lambda dataset: f"Dataset({dataset.part}@{dataset.digest})"),
            (logging.Logger, lambda logger: f"Logger({logger.name!r})"),
            # A device's number is another for each worker.
            (torch.device, lambda device: f"device({device.type!r})"),
            ((torch.dtype, np.dtype), str),
        )
        for kinds, way in ways:
            if isinstance(thing, kinds):
                return way(thing)
        return self._named(thing) if _is_named(thing) else self._object(thing)

    def _mapping(self, mapping: Mapping[Any, Any]) -> str:
        items = sorted((self.text(key), self.text(value)) for key, value in mapping.items())
        return "{" + ", ".join(f"{key}: {value}" for key, value in items) + "}"

    def _partial(self, partial: functools.partial[Any]) -> str:
        return f"partial({self._arguments((partial.func, *partial.args), partial.keywords)})"

    def _alone(self, thing: object) -> str:
        """A member of a set, whose order is another in every process: nothing known is used."""
        known, self._known = self._known, {}
        found = self.text(thing)
        self._known = known
        return found

    def _object(self, thing: Any) -> str:
        found: Mapping[str, object]
        if isinstance(thing, torch.nn.Module):
            found = self._in_module(thing)
        elif isinstance(thing, torch.optim.Optimizer):
            found = thing.defaults
        elif dataclasses.is_dataclass(thing):
            names = [field.name for field in dataclasses.fields(thing)]
            found = {name: getattr(thing, name) for name in names if hasattr(thing, name)}
        else:
            found = _attributes(thing)
        name = type(thing).__qualname__
        empty = not found and not dataclasses.is_dataclass(thing)
        return name if empty else f"{name}({self._arguments((), found)})"

    def _in_module(self, module: torch.nn.Module) -> dict[str, object]:
        found = {name: vars(module)[name] for name in sorted(set(vars(module)) - _OF_MODULES)}
        for name, parameter in module._parameters.items():
            # What is trained has other values after each step.
            if parameter is not None and not parameter.requires_grad:
                found[name] = parameter
        return found | dict(module._buffers) | dict(module._modules)

    def _function(self, function: types.FunctionType) -> str:
        cells = function.__closure__ or ()
        if (function.__module__ or "").partition(".")[0] == "torch" and not cells:
            return _name(function)
        inner: dict[str, object] = {}
        if function.__defaults__ or function.__kwdefaults__:
            inner["defaults"] = (function.__defaults__ or (), function.__kwdefaults__ or {})
        state = _bound_anew(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            try:
                inner |= {} if name in state else {name: cell.cell_contents}
            except ValueError:  # it is not filled yet
                inner[name] = None
        inner |= {name: vars(function)[name] for name in sorted(set(vars(function)) - _WRAPPED)}
        digest = _digest(_code(function.__code__).encode())
        return f"<{self._arguments((), {'code': digest} | inner)}> {_name(function)}"

    def _method(self, method: Any) -> str:
        whole = getattr(method, "__func__", None)
        name = f"{method.__module__ or ''}.{method.__qualname__}"
        text = self.text(whole) if isinstance(whole, types.FunctionType) else name
        owner = method.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            return text
        return f"{text} of {self.text(owner)}"

    def _named(self, thing: Any) -> str:
        """A class, or what stands for a function, such as one that numba compiles."""
        inner = getattr(thing, "py_func", getattr(thing, "__wrapped__", None))
        if not isinstance(thing, type) and isinstance(inner, types.FunctionType):
            return f"{type(thing).__qualname__}({self.text(inner)})"
        return _name(thing)

    def _array(self, array: _Array) -> str:
        name, shape = type(array).__name__, tuple(array.shape)
        kind = str(array.dtype)
        if isinstance(array, torch.Tensor):
            if array.is_meta:
                return f"{name}({kind}, {shape})"
            plain = array.detach().cpu()
            dense = plain if plain.layout == torch.strided else plain.to_dense()
            content = dense.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        elif array.dtype.hasobject:
            content = self.text(array.tolist()).encode()
        else:
            content = array.tobytes()
        return f"{name}({kind}, {shape}, {_digest(content)})"

    def _arguments(self, args: Iterable[object], keywords: Mapping[str, object]) -> str:
        named = [f"{name}={self.text(value)}" for name, value in keywords.items()]
        return ", ".join([*map(self.text, args), *named])


def _short(name: str, text: str) -> str:
    return text if len(text) <= _LONGEST else f"{name}({_digest(text.encode())})"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', None) or ''}.{thing.__qualname__}"


def _code(code: types.CodeType) -> str:
    """What a function does, whatever file and line it stands in."""
    constants = [
        _code(constant) if isinstance(constant, types.CodeType) else _Description().text(constant)
        for constant in code.co_consts
    ]
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    parts = (code.co_code, code.co_exceptiontable, constants, code.co_names, counts)
    return repr((*parts, code.co_freevars, code.co_cellvars))


def _is_named(thing: object) -> bool:
    return isinstance(getattr(thing, "__qualname__", None), str)


def _bound_anew(code: types.CodeType) -> set[str]:
    """Names that a function or one within it binds with `nonlocal`: counters and the like."""
    steps = dis.get_instructions(code)
    found = {step.argval for step in steps if step.opname == "STORE_DEREF"}
    found &= set(code.co_freevars)
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return found.union(*map(_bound_anew, inner))


def _attributes(thing: object) -> dict[str, object]:
    """By name, what an object has in its dictionary and slots, or else what pickle keeps of it."""
    found = dict(getattr(thing, "__dict__", {}))
    has_any = hasattr(thing, "__dict__")
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        has_any |= bool(slots)
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{kind.__name__.lstrip('_')}{slot}" if private else slot
            if name not in ("__dict__", "__weakref__") and hasattr(thing, name):
                found[name] = getattr(thing, name)
    return dict(sorted(found.items())) if has_any else {"state": _pickled(thing)}


def _pickled(thing: Any) -> object:
    """What a value written in C, such as a date, is made of again; None where nothing says."""
    try:
        reduced = thing.__reduce_ex__(2)
    except Exception:  # noqa: BLE001 - locks, files and others refuse it in their own ways
        return None
    return reduced if isinstance(reduced, str) else tuple(reduced[1:3])
