"""Parts of the gradient travel while the backward pass that fills them goes on.

Torch calls a hook when a parameter's gradient has been accumulated. The backward pass goes through
a model about from its end to its begin, and so the vector's last part is complete first.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.hooks import RemovableHandle

from distrain.parallel.gradients import FlatGradients


class Overlap:
    """Watches a backward pass, and says which parts of the gradient are complete.

    Attributes:
        was_late: A gradient moved once more after its part had gone: with reentrant checkpoints a
            parameter may be accumulated twice. The sum is wrong then, and has to be done again.
    """

    def __init__(self, gradients: FlatGradients, parts: Sequence[range]) -> None:
        """Hooks stay on the parameters as long as this object lives."""
        self._gradients = gradients
        self.was_late = False
        self._parameters = [
            [
                number
                for number, span in enumerate(gradients.spans)
                if span.start < part.stop and span.stop > part.start
            ]
            for part in parts
        ]
        self._part_of = [
            [part for part, numbers in enumerate(self._parameters) if number in numbers]
            for number in range(len(gradients.spans))
        ]
        # A parameter that reaches into several parts is copied with the first that takes it.
        taken: set[int] = set()
        self._copied: list[list[int]] = []
        for numbers in self._parameters:
            self._copied.append([number for number in numbers if number not in taken])
            taken.update(numbers)
        self._missing: list[set[int]] = []
        self._next = 0
        self._views: Sequence[torch.Tensor] = ()
        self._ready: Callable[[int], None] | None = None
        handles = _hooked(weakref.ref(self), gradients.parameters)
        weakref.finalize(self, _remove, handles)

    @contextmanager
    def watching(
        self, views: Sequence[torch.Tensor], ready: Callable[[int], None]
    ) -> Iterator[None]:
        """Copies gradients to `views` part by part; `ready(part)` is called in the parts' order.

        What the backward pass has left out follows at the end.
        """
        self.was_late, self._next = False, 0
        self._missing = [set(numbers) for numbers in self._parameters]
        self._views, self._ready = views, ready
        try:
            yield
            while self._next < len(self._parameters):
                self._complete()
        finally:
            self._ready = None

    def _accumulated(self, number: int) -> None:
        if self._ready is None:
            return
        for part in self._part_of[number]:
            if part < self._next:
                self.was_late = True
            self._missing[part].discard(number)
        while self._next < len(self._missing) and not self._missing[self._next]:
            self._complete()

    def _complete(self) -> None:
        assert self._ready is not None
        self._gradients.collect(self._views, self._copied[self._next])
        self._next += 1
        self._ready(self._next - 1)


def _hooked(
    overlap: "weakref.ref[Overlap]", parameters: Sequence[torch.nn.Parameter]
) -> list[RemovableHandle]:
    def hook(number: int) -> Callable[[torch.Tensor], None]:
        def accumulated(_parameter: torch.Tensor) -> None:
            alive = overlap()
            if alive is not None:
                alive._accumulated(number)

        return accumulated

    return [
        parameter.register_post_accumulate_grad_hook(hook(number))  # type: ignore[no-untyped-call]
        for number, parameter in enumerate(parameters)
    ]


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
