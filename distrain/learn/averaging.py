"""Averages of the weights over a run's steps: exponential (EMA), or of equal shares (SWA).

What is evaluated, and what becomes the result, is the average; training goes on with the weights
themselves. Parameters and buffers of floating point are averaged, as torch's
`AveragedModel(use_buffers=True)` does, so that batch norm needs no second pass over the data; other
buffers are copied. All of it acts element by element on what every worker holds: the bits are the
same at any number of workers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from distrain.errors import ConfigError

COUNT, PREFIX = "n_averaged", "module."
"""Names in a checkpoint: those of torch's AveragedModel, which can load one."""


@dataclass(frozen=True)
class Moments:
    """The steps after which the weights enter the average: every so many, some being left out."""

    left_out: int
    every: int

    def count(self, steps_done: int) -> int:
        """How many of them there are up to that step."""
        return max(0, steps_done - self.left_out) // self.every

    def due(self, steps_done: int) -> bool:
        """Whether that step's is one."""
        return self.count(steps_done) > self.count(steps_done - 1)


@dataclass(frozen=True)
class ExponentialAverage:
    """An average in which older weights count less and less (EMA).

    average <- decay * average + (1 - decay) * weights, the first weights being taken as they are.

    Attributes:
        decay: Share of the old average that each update keeps; below 1.
        every_steps: Steps between two updates.
        start_step: Steps done before averaging begins.
    """

    decay: float = 0.999
    every_steps: int = 1
    start_step: int = 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        if not 0 < self.decay < 1:
            raise ConfigError(
                f"ExponentialAverage: decay is {self.decay}; it must lie between 0 and 1, such as "
                "0.999, which looks back over about 1,000 updates"
            )
        _check_whole("ExponentialAverage: every_steps", self.every_steps, 1)
        _check_whole("ExponentialAverage: start_step", self.start_step, 0)

    def moments(self, steps_per_epoch: int) -> Moments:  # noqa: ARG002 - another average needs it
        """When it is updated."""
        return Moments(self.start_step, self.every_steps)

    def arithmetic(self) -> Callable[..., None]:
        """Torch's function (averages, weights, number of those averaged before)."""
        function: Callable[..., None] = get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
        return function


@dataclass(frozen=True)
class StochasticAverage:
    """The mean of the weights from some epoch on (SWA): Izmailov et al. (2018), arXiv:1803.05407.

    It is meant for a learning rate that stays high, or falls and rises, once averaging has begun.

    Attributes:
        start_epoch: The first epoch, counted from 1, whose weights are averaged.
        every_steps: Steps between two updates, counted from that epoch's begin; None takes the
            weights at the end of each epoch.
    """

    start_epoch: int
    every_steps: int | None = None

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check_whole("StochasticAverage: start_epoch", self.start_epoch, 1)
        if self.every_steps is not None:
            _check_whole("StochasticAverage: every_steps", self.every_steps, 1)

    def moments(self, steps_per_epoch: int) -> Moments:
        """When it is updated."""
        every = steps_per_epoch if self.every_steps is None else self.every_steps
        return Moments((self.start_epoch - 1) * steps_per_epoch, every)

    def arithmetic(self) -> Callable[..., None]:
        """Torch's function (averages, weights, number of those averaged before)."""
        function: Callable[..., None] = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        return function


Average = ExponentialAverage | StochasticAverage


def _check_whole(where: str, value: Any, least: int) -> None:
    if not (isinstance(value, int) and value >= least):
        raise ConfigError(f"{where} is {value!r}; give a whole number, {least} or more")


class AveragedWeights:
    """The average of a model's weights, as far as a run has come; without a rule there is none.

    While the average stands in the model (`exchange`), the model's own weights lie here in its
    place, so that an exchange takes no more memory than one tensor's.
    """

    def __init__(
        self, model: torch.nn.Module, rule: Average | None, steps_per_epoch: int = 1
    ) -> None:
        """Takes the memory that the average will need, so that a run does not lack it later."""
        self._rule, self._count, self._exchanged = rule, 0, False
        self._moments = rule.moments(steps_per_epoch) if rule else Moments(0, 1)
        self._arithmetic = rule.arithmetic() if rule else None
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        # By name, a tied tensor under each of its own; not what a module makes up for its state.
        state = model.state_dict(keep_vars=True) if rule else {}
        self._weights = {name: tensor for name, tensor in state.items() if id(tensor) in own}
        self._unique = {id(weights): weights for weights in self._weights.values()}
        self._averages = {key: w.detach().clone() for key, w in self._unique.items()}

    @property
    def has_begun(self) -> bool:
        """Whether any weights are averaged yet."""
        return self._count > 0

    def check(self, last_step: int) -> None:
        """Refuses a run that would be over before its average begins.

        Raises:
            ConfigError: it would.
        """
        if self._rule is not None and not self._moments.count(last_step):
            raise ConfigError(
                f"{self._rule}: the run has {last_step} steps, and the first weights would be "
                f"averaged after step {self._moments.left_out + self._moments.every}: let "
                "averaging begin earlier, or train for longer"
            )

    def update(self, steps_done: int) -> None:
        """The weights are those after that step: they enter the average if they are due."""
        if self._arithmetic is None or not self._moments.due(steps_done):
            return
        alike: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for key, weights in self._unique.items():
            average = self._averages[key]
            if self._count and (average.is_floating_point() or average.is_complex()):
                averages, current = alike.setdefault(average.dtype, ([], []))
                averages.append(average)
                current.append(weights.detach())
            else:
                average.copy_(weights.detach())
        for averages, current in alike.values():
            self._arithmetic(averages, current, self._count)
        self._count += 1

    @torch.no_grad()
    def exchange(self) -> None:
        """The average into the model, the model's weights out of it; once more puts them back."""
        if not self._count:
            return
        for key, weights in self._unique.items():
            own = weights.detach().clone()
            weights.copy_(self._averages[key])
            self._averages[key].copy_(own)
        self._exchanged = not self._exchanged

    def standing(self) -> dict[int, torch.Tensor]:
        """By tensor's `id`, the model's own weights while the average stands in the model."""
        return dict(self._averages) if self._exchanged else {}

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs; empty before averaging has begun."""
        if not self._count:
            return {}
        found = {COUNT: torch.tensor(self._count)}
        for name, weights in self._weights.items():
            average = weights.detach() if self._exchanged else self._averages[id(weights)]
            found[PREFIX + name] = average
        return found

    def take_up(self, state: Mapping[str, torch.Tensor]) -> None:
        """Sets what `state` gave."""
        self._count = int(state[COUNT]) if state else 0
        if not state:
            return
        for name, weights in self._weights.items():
            self._averages[id(weights)].copy_(state[PREFIX + name])
