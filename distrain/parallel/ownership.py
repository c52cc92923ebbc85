"""Who holds the optimizer's state and moves which weights: every worker all, or each its share."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from distrain.parallel.gradients import FlatGradients, block_norms, norm_of_blocks
from distrain.parallel.optimizer_state import (
    Held,
    Layouts,
    OptimizerState,
    host_copy,
    load_copy,
    optimizer_tensors,
)


class Ownership(Protocol):
    """What a step does with the summed gradient; flat vectors are laid out as `FlatGradients`.

    Attributes:
        is_shared: No worker has the whole optimizer's state; all have to bring it together.
    """

    is_shared: bool

    def norm(self, gradient: torch.Tensor) -> float:
        """The 2-norm of the whole gradient, the same bits on every worker."""
        ...

    def owned(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """The pieces of the summed gradient that this worker has."""
        ...

    def whole(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """The whole gradient by parameter, to be looked at; all workers call it."""
        ...

    def assign(self, gradient: torch.Tensor, present: Sequence[int]) -> None:
        """Gives the optimizer its gradients, none where `present` is 0; the buffer lives on."""
        ...

    def share_weights(self) -> None:
        """Brings the updated weights to every worker."""
        ...

    def held(self) -> Held:
        """A copy of what this worker has of the optimizer's state."""
        ...

    def take(self, held: Held) -> None:
        """Sets it to such a copy, which stays as it is; the groups' settings stay too."""
        ...

    def optimizer_state(self, held: Held | None = None, *, apart: bool = False) -> OptimizerState:
        """The state of the whole optimizer; all workers call it.

        `held`: not as it is now, but as each worker has copied it.
        `apart`: from another thread than the training's, which may be in an exchange.
        """
        ...

    def part(self, held: Held | None = None) -> OptimizerState:
        """What this worker has of that, for `joined`; nothing travels. `held` as above."""
        ...

    def layouts(self) -> Layouts:
        """How the pieces of a `part` make up the optimizer's parameters."""
        ...

    def own(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> Held:
        """This worker's part of the state of the whole optimizer."""
        ...

    def load_optimizer_state(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
    ) -> None:
        """Sets the state from that of the whole optimizer; its groups' settings stay."""
        ...


class Replicated:
    """Every worker updates all weights."""

    is_shared = False

    def __init__(self, gradients: FlatGradients, optimizer: torch.optim.Optimizer) -> None:
        """Changes nothing."""
        self._gradients, self._optimizer = gradients, optimizer

    def norm(self, gradient: torch.Tensor) -> float:
        """Nothing has to travel."""
        return norm_of_blocks(block_norms(gradient))

    def owned(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """All of it."""
        return [vector]

    def whole(self, gradient: torch.Tensor) -> list[torch.Tensor]:
        """It is here."""
        return self._gradients.buffer_views(gradient)

    def assign(self, gradient: torch.Tensor, present: Sequence[int]) -> None:
        """By parameter."""
        self._gradients.assign(self._gradients.buffer_views(gradient), present)

    def share_weights(self) -> None:
        """Every worker has them."""

    def held(self) -> Held:
        """All of it."""
        return host_copy(self._optimizer)

    def optimizer_state(self, held: Held | None = None, *, apart: bool = False) -> OptimizerState:  # noqa: ARG002
        """This worker's own; others need not call it."""
        return optimizer_tensors(self._optimizer, held)

    def part(self, held: Held | None = None) -> OptimizerState:
        """All of it."""
        return self.optimizer_state(held)

    def layouts(self) -> Layouts:
        """There are no pieces."""
        return {}

    def own(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]) -> Held:
        """All of it."""
        state: Held = {}
        for key, value in (*tensors.items(), *numbers.items()):
            parameter, _, name = key.partition(".")
            state.setdefault(int(parameter), {})[name] = value
        return state

    def take(self, held: Held) -> None:
        """In the parameters' strides, since fused optimizers look at none."""
        load_copy(self._optimizer, held)
        for parameter, loaded in self._optimizer.state.items():
            for name, value in loaded.items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    # A checkpoint's tensors are contiguous.
                    same = value.stride() == parameter.stride()
                    like = value if same else torch.empty_like(parameter, dtype=value.dtype)
                    loaded[name] = value if same else like.copy_(value)

    def load_optimizer_state(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, float]
    ) -> None:
        """As it is."""
        self.take(self.own(tensors, numbers))
