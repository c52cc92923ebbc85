"""The first layer whose numbers are not finite, found by hooks that look and touch nothing.

Forward, a hook stands before and behind each module. Backward, hooks stand on the very tensors that
go into modules and come out of them: torch's hooks on modules put nodes of their own into the graph
and refuse modules that work in place. A gradient that is not finite is laid to the module that the
tensor went into, since its backward pass gave it; one of a tensor that went into none is laid to
what follows the module it came from: the loss, or code outside of all modules.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from distrain.micro_batch import Columns

Place = Literal[
    "column",
    "input",
    "output",
    "loss",
    "gradient of the input",
    "gradient of the output",
    "gradient of the parameter",
]


@dataclass(frozen=True)
class NonFinite:
    """Where numbers were not finite.

    Attributes:
        micro_batch: Counted from 0.
        place: In what of a module.
        layer: The module's name; empty for the model itself; a parameter's or a column's name where
            the place is one.
        kind: The module's class.
        is_nan: Whether a NaN was among them, and not infinite ones alone.
        samples: Places in the micro-batch of the samples that they belong to, where that is known.
        weights: Parameters of that module itself that were not finite already.
    """

    micro_batch: int
    place: Place
    layer: str
    kind: str = ""
    is_nan: bool = True
    samples: tuple[int, ...] = ()
    weights: tuple[str, ...] = ()

    @property
    def is_forward(self) -> bool:
        """Whether it was in the forward pass."""
        return not self.place.startswith("gradient")

    @property
    def owner(self) -> str:
        """The module's name, also where the place is a parameter."""
        is_parameter = self.place == "gradient of the parameter"
        return self.layer.rpartition(".")[0] if is_parameter else self.layer


Report = Callable[[NonFinite], None]


@contextmanager
def looking(
    module: torch.nn.Module, micro_batch: int, columns: Columns, report: Report
) -> Iterator[None]:
    """Reports each place in forward and backward pass whose numbers are not finite, in its order.

    A compiled module is left alone: hooks would have it compiled anew, to other kernels.
    """
    if module._compiled_call_impl is not None:
        yield
        return
    num_samples = max((len(column) for column in columns.values()), default=0)
    look = _Look(module, micro_batch, num_samples, report)
    for name, column in columns.items():
        look.at("column", name, column)
    handles = []
    try:
        for name, inner in module.named_modules():
            if isinstance(inner, torch.jit.ScriptModule):
                continue
            handles += [
                inner.register_forward_pre_hook(partial(look.before, name), with_kwargs=True),
                inner.register_forward_hook(partial(look.behind, name), with_kwargs=True),
            ]
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                hook = partial(look.at, "gradient of the parameter", name)
                handles.append(parameter.register_hook(hook))  # type: ignore[no-untyped-call]
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Uses:
    """Which modules a tensor went into or came out of, as it was then: it may change in place."""

    node: Any
    places: list[tuple[Literal["input", "output"], str]] = field(default_factory=list)


class _Look:
    """The hooks of one micro-batch."""

    def __init__(
        self, module: torch.nn.Module, micro_batch: int, num_samples: int, report: Report
    ) -> None:
        self._modules = dict(module.named_modules())
        self._micro_batch, self._num_samples, self._report = micro_batch, num_samples, report
        self._uses = WeakTensorKeyDictionary()

    def before(
        self, name: str, _module: torch.nn.Module, args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        """What goes into a module."""
        self._pass_by("input", name, (args, kwargs))

    def behind(
        self, name: str, _module: torch.nn.Module, _args: Any, _kwargs: Any, output: Any
    ) -> None:
        """What comes out."""
        self._pass_by("output", name, output)

    def _pass_by(self, place: Literal["input", "output"], name: str, value: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # a backward pass has it run again, to the same numbers
        for tensor in _tensors_in(value):
            self.at(place, name, tensor)
            if tensor.grad_fn is None:
                continue
            uses = self._uses.get(tensor)  # type: ignore[no-untyped-call]
            if uses is None or uses.node is not tensor.grad_fn:
                uses = self._uses[tensor] = _Uses(tensor.grad_fn)
                tensor.register_hook(partial(self._gradient, uses))  # type: ignore[no-untyped-call]
            uses.places.append((place, name))

    def _gradient(self, uses: _Uses, gradient: torch.Tensor) -> None:
        went_into = [name for place, name in uses.places if place == "input"]
        if went_into:
            innermost = [
                name for name in went_into if not any(_is_within(x, name) for x in went_into)
            ]
            self.at("gradient of the input", innermost[-1], gradient)
        else:
            self.at("gradient of the output", uses.places[0][1], gradient)

    def at(self, place: Place, name: str, tensor: torch.Tensor) -> None:
        """Reports the tensor if it is not finite."""
        numbers = tensor.detach()
        if numbers.is_sparse:
            numbers = numbers._values()
        if not (numbers.is_floating_point() or numbers.is_complex()):
            return
        wrong = ~torch.isfinite(numbers)
        if not bool(wrong.any()):
            return
        samples: list[int] = []
        if wrong.dim() and len(wrong) == self._num_samples and "parameter" not in place:
            samples = wrong.reshape(len(wrong), -1).any(1).nonzero().flatten().tolist()
        found = NonFinite(
            self._micro_batch,
            place,
            name,
            is_nan=bool(torch.isnan(numbers).any()),
            samples=tuple(samples),
        )
        module = None if place == "column" else self._modules.get(found.owner)
        if module is not None:
            weights = module.named_parameters(recurse=False)
            wrong_ones = [name for name, p in weights if not bool(torch.isfinite(p).all())]
            found = replace(found, kind=type(module).__name__, weights=tuple(wrong_ones))
        self._report(found)


def _is_within(inner: str, outer: str) -> bool:
    return inner != outer and (not outer or inner.startswith(f"{outer}."))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors_in(inner)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for inner in value:
            yield from _tensors_in(inner)
