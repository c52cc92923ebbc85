"""Checks that all workers still hold one state, so that no silent error is trained on.

All workers compute the same update from the same sums, so their weights, buffers and optimizer
states are equal bit for bit, unless memory, a core or a device has changed one unnoticed, or code
ran on one worker alone. Every so many steps a digest of the state travels as a flag with the next
step's exchange (rule 6: it can end a run and change no weight); the last state has an exchange of
its own. What is wrong before it is summed is the same on all workers, and can't be seen.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from distrain.errors import ConfigError, DivergedError
from distrain.parallel.communicator import gather_bytes
from distrain.parallel.digest import combined, tensor_digests
from distrain.parallel.world import World


class StateCheck:
    """Compares the state of all workers now and then.

    Attributes:
        alike_after: The newest step after which all workers were alike; None where nothing is
            compared, or nothing was yet.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        world: World,
        every_steps: int | None,
    ) -> None:
        """`optimizer` is None where its state is not the same on every worker.

        Raises:
            ConfigError: `every_steps` is negative; None and 0 are for never.
        """
        if every_steps is not None and every_steps < 0:
            raise ConfigError(f"check_every is {every_steps}; give 1 or more, or 0 for never")
        self._model, self._optimizer, self._world = model, optimizer, world
        self._every = (every_steps or None) if world.size > 1 else None
        self.alike_after: int | None = None
        self._digests: dict[str, int] = {}

    def word(self, steps_done: int) -> int:
        """What this worker sends with the next exchange: its digest if a check is due, else 0.

        Called between two steps, when the running statistics stand still.
        """
        self._digests = {}
        if self._every and self.alike_after is None:  # all begin with rank 0's state
            self.alike_after = steps_done
        if not self.is_due(steps_done):
            return 0
        self._digests = tensor_digests(replicated_state(self._model, self._optimizer))
        return combined(self._digests)

    def is_due(self, steps_done: int) -> bool:
        """Whether the state after so many steps is compared with the exchange of the next one."""
        if self._every is None or steps_done == self.alike_after:
            return False
        return steps_done % self._every == 0

    def judge(self, steps_done: int, words: Sequence[int]) -> None:
        """Compares what all workers have sent, by rank.

        Raises:
            DivergedError: on all workers alike; names the workers and the tensors that differ.
        """
        if not self._digests:
            return
        if len(set(words)) > 1:
            raise self._diverged(steps_done)
        self.alike_after = steps_done

    def compare(self, steps_done: int) -> None:
        """The check in an exchange of its own, which every worker enters: before a run ends.

        Raises:
            DivergedError: as `judge`.
        """
        if self._every is None or self.alike_after in (None, steps_done):
            return
        self._compare(steps_done)

    def compare_anew(self, steps_done: int) -> None:
        """The check of a state that every worker has gone back to, each by its own copy of it.

        Raises:
            DivergedError: as `judge`.
        """
        if self._every is None:
            return
        self.alike_after = min(self.alike_after or 0, steps_done)
        self._compare(steps_done)

    def _compare(self, steps_done: int) -> None:
        self._digests = tensor_digests(replicated_state(self._model, self._optimizer))
        word = torch.tensor([combined(self._digests)], device=self._world.device)
        self.judge(steps_done, self._world.communicator.all_gather(word).flatten().tolist())

    def _diverged(self, steps_done: int) -> DivergedError:
        """Finds who differs in what: a closing exchange of the digests of all tensors."""
        told = gather_bytes(
            json.dumps(self._digests).encode(), self._world.communicator, self._world.device
        )
        found = parted([json.loads(each) for each in told])
        return DivergedError(
            step=steps_done,
            alike_after=self.alike_after or 0,
            ranks=found.ranks,
            names=found.names,
            outvoted=found.outvoted,
        )


@dataclass(frozen=True)
class Parted:
    """Who differs in what.

    Attributes:
        ranks: The workers that differ from the majority; without one, those of all groups.
        names: The tensors that are not the same everywhere, in their order.
        outvoted: Whether more than half of the workers agree with each other.
    """

    ranks: tuple[int, ...]
    names: tuple[str, ...]
    outvoted: bool


def parted(digests: Sequence[Mapping[str, int]]) -> Parted:
    """Who differs in what, from the digests by tensor of each worker, by rank."""
    kinds = [tuple(sorted(each.items())) for each in digests]
    most_common, count = Counter(kinds).most_common(1)[0]
    outvoted = 2 * count > len(kinds)
    ranks = [rank for rank, kind in enumerate(kinds) if kind != most_common or not outvoted]
    order = dict.fromkeys(name for each in digests for name in each)
    names = [name for name in order if len({each.get(name) for each in digests}) > 1]
    return Parted(tuple(ranks), tuple(names), outvoted)


def replicated_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer | None
) -> dict[str, torch.Tensor]:
    """All tensors that have to be the same on every worker, each with a name for a person."""
    found: dict[str, torch.Tensor] = {}
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        found[f"parameter {name}"] = parameter
        names[id(parameter)] = name
    for name, buffer in model.named_buffers():
        found[f"buffer {name}"] = buffer
    for number, weight in enumerate(_optimized(optimizer)):
        name = names.get(id(weight), f"parameter {number} of the optimizer")
        for key, value in (optimizer.state.get(weight, {}) if optimizer else {}).items():
            if torch.is_tensor(value):
                found[f"{key} of {name}"] = value
    return found


def _optimized(optimizer: torch.optim.Optimizer | None) -> list[torch.Tensor]:
    groups = optimizer.param_groups if optimizer else []
    return [parameter for group in groups for parameter in group["params"]]
