"""Copies of a model that share its weights, for several micro-batches under way at once."""

import copy

import torch

from distrain.errors import ConfigError, ProgramError
from distrain.parallel.forward_guard import ForwardGuard


class ModuleCopies:
    """Modules with the model's parameters' memory and gradients of their own; buffers are shared.

    Usage: `take(num)` at the begin of a step, which gives that many; `check()` at its end.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Copies are made as they are needed, and kept."""
        self.model = model
        self._copies: list[torch.nn.Module] = []
        self._guards: list[ForwardGuard] = []

    def take(self, num: int) -> list[torch.nn.Module]:
        """So many modules, each module in them in the mode that the model's is in.

        One is the model itself, so that what can't be copied can be trained by as many workers as
        there are micro-batches.

        Raises:
            ConfigError: the model can't be copied.
        """
        if num < 2:
            return [self.model] * num
        while len(self._copies) < num:
            self._copies.append(self._copy())
            self._guards.append(ForwardGuard(self._copies[-1], ()))
        taken = self._copies[:num]
        for module, guard in zip(taken, self._guards, strict=False):
            guard.begin()
            for own, theirs in zip(module.modules(), self.model.modules(), strict=True):
                own.training = theirs.training
            for mine, shared in zip(module.parameters(), self.model.parameters(), strict=True):
                mine.grad = None
                if mine.data_ptr() != shared.data_ptr():
                    mine.data = shared.data
        return taken

    def check(self, taken: list[torch.nn.Module]) -> None:
        """Looks for state that the copies changed, and for gradients that went past them.

        Raises:
            ProgramError: they have changed some, or the model itself was trained on.
        """
        if taken == [self.model]:
            return
        for guard in self._guards[: len(taken)]:
            guard.check()
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                raise ProgramError(f"parameter {name} {OTHER_MODEL}")

    def hand_over(self, taken: torch.nn.Module) -> None:
        """Gives the model the gradients of one of the copies."""
        if taken is self.model:
            return
        for parameter, own in zip(self.model.parameters(), taken.parameters(), strict=True):
            parameter.grad, own.grad = own.grad, None

    def _copy(self) -> torch.nn.Module:
        kept: dict[int, object] = {id(buffer): buffer for buffer in self.model.buffers()}
        for parameter in self.model.parameters():
            kept[id(parameter)] = torch.nn.Parameter(parameter.data, parameter.requires_grad)
        try:
            return copy.deepcopy(self.model, kept)
        except Exception as error:
            raise ConfigError(
                f"the model can't be copied ({type(error).__name__}: {error}), and with "
                'batch_norm = "sync" a worker needs a copy for each of its micro-batches: start as '
                'many workers as there are micro-batches, or choose batch_norm = "micro"'
            ) from error


OTHER_MODEL = (
    "was used from another model than the one that the micro-batch step was given: with "
    'batch_norm = "sync" each micro-batch under way has a copy of its own; use the argument, and '
    "no model from outside of the function"
)
