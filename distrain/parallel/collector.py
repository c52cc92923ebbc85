"""Takes gradients out of a backward pass while it goes on.

Torch calls a hook when a parameter's gradient has been accumulated. A large one is copied to the
leaf there and then, while it is in the cache, and its memory is free for the next. The backward
pass goes through a model about from its end to its begin, so that the vector's last part is
complete first, and can travel while the rest is computed.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.utils.hooks import RemovableHandle

from distrain.parallel.gradients import FlatGradients

LARGE = 2**14
"""A gradient of so many words is copied by itself, at once; smaller ones part by part, together."""

Ready = Callable[[int], None]


class GradientCollector:
    """Watches a backward pass, and fills a leaf of the tree with its gradients.

    Attributes:
        was_late: A gradient moved once more after its part had gone: with reentrant checkpoints a
            parameter may be accumulated twice. The sum is wrong then, and has to be done again.
    """

    def __init__(self, gradients: FlatGradients, parts: Sequence[range]) -> None:
        """Hooks stay on the parameters as long as this object lives.

        `parts` are those in which the gradient travels; without any it is one.
        """
        self._gradients = gradients
        self.was_late = False
        self._parameters = [
            [
                number
                for number, span in enumerate(gradients.spans)
                if span.start < part.stop and span.stop > part.start
            ]
            for part in parts or (range(gradients.num_floats),)
        ]
        self._parts_of: list[list[int]] = [[] for _ in gradients.spans]
        for part, numbers in enumerate(self._parameters):
            for number in numbers:
                self._parts_of[number].append(part)
        # A parameter that reaches into several parts is copied with the first that takes it.
        taken: set[int] = set()
        self._copied: list[list[int]] = []
        for numbers in self._parameters:
            self._copied.append([number for number in numbers if number not in taken])
            taken.update(numbers)
        self._large = {n for n, span in enumerate(gradients.spans) if len(span) >= LARGE}
        self._here: set[int] = set()
        self._missing: list[set[int]] = []
        self._next = 0
        self._views: Sequence[torch.Tensor] = ()
        self._ready: Ready | None = None
        self._is_watching = False
        handles = _hooked(weakref.ref(self), gradients.parameters)
        weakref.finalize(self, _remove, handles)

    @contextmanager
    def watching(
        self, views: Sequence[torch.Tensor], ready: Ready | None = None, *, hooks: bool = True
    ) -> Iterator[None]:
        """Copies gradients to `views`, those of a leaf: at the end of the block all are there.

        `ready(part)` is called in the parts' order as soon as a part is complete. With
        `hooks=False` the gradients are taken from the parameters at the end.
        """
        self.was_late, self._next = False, 0
        self._here = set()
        self._missing = [set(numbers) for numbers in self._parameters]
        self._views, self._ready, self._is_watching = views, ready, hooks
        try:
            yield
            while self._next < len(self._parameters):
                self._complete()
        finally:
            self._is_watching, self._ready = False, None

    def mark(self, present: torch.Tensor) -> None:
        """Sets `present` `(num_parameters,)`, int64, to 1 where there was a gradient, else to 0."""
        self._gradients.mark(present, self._here)

    def _accumulated(self, number: int) -> None:
        if not self._is_watching:
            return
        for part in self._parts_of[number]:
            if part < self._next:
                self.was_late = True
            self._missing[part].discard(number)
        if number in self._large:
            self._take(number)
        while self._ready and self._next < len(self._missing) and not self._missing[self._next]:
            self._complete()

    def _take(self, number: int) -> None:
        parameter = self._gradients.parameters[number]
        if number in self._here:  # a second accumulation, as torch would have added it
            gradient = parameter.grad
            assert gradient is not None
            self._views[number].add_(gradient.to_dense() if gradient.is_sparse else gradient)
        else:
            self._gradients.collect(self._views, (number,))
            self._here.add(number)
        parameter.grad = None

    def _complete(self) -> None:
        left = [number for number in self._copied[self._next] if number not in self._here]
        self._gradients.collect(self._views, left)
        self._next += 1
        if self._ready is not None:
            self._ready(self._next - 1)


def _hooked(
    collector: "weakref.ref[GradientCollector]", parameters: Sequence[torch.nn.Parameter]
) -> list[RemovableHandle]:
    def hook(number: int) -> Callable[[torch.Tensor], None]:
        def accumulated(_parameter: torch.Tensor) -> None:
            alive = collector()
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
