"""Refuses a forward pass that changes state for which there is no rule (rule 15).

Each worker would change its own copy, by its own micro-batches: the workers would part, and another
number of them would give other weights.
"""

from collections.abc import Collection

import torch

from distrain.errors import ProgramError


class ForwardGuard:
    """Watches parameters and buffers by torch's own count of in-place changes."""

    def __init__(self, model: torch.nn.Module, covered: Collection[int]) -> None:
        """`covered` are the `id`s of the buffers that have a rule."""
        self._model = model
        self._buffers = [
            (name, buffer) for name, buffer in model.named_buffers() if id(buffer) not in covered
        ]
        self._parameters = list(model.named_parameters())
        self._versions: list[int] = []

    def begin(self) -> None:
        """Remembers the counts at the begin of a step: the last update has moved them."""
        self._versions = [tensor._version for _, tensor in (*self._parameters, *self._buffers)]

    def check(self) -> None:
        """Compares, once this worker's micro-batches are done.

        Raises:
            ProgramError: something was changed, or a buffer was replaced; it is named.
        """
        watched = (*self._parameters, *self._buffers)
        for (name, tensor), version in zip(watched, self._versions, strict=True):
            if tensor._version != version:
                raise self._refusal(name)
        current = dict(self._model.named_buffers()) if self._buffers else {}
        for name, buffer in self._buffers:
            if current.get(name) is not buffer:
                raise self._refusal(name)

    def _refusal(self, name: str) -> ProgramError:
        kind = "parameter" if name in dict(self._parameters) else "buffer"
        return ProgramError(
            f"the forward pass changed the {kind} {name}, and there is no rule how the changes of "
            "several micro-batches make one: keep such state out of the forward pass (spectral "
            "norm: use its parametrized weight in eval mode; an embedding's max_norm: clip after "
            "training)"
        )
