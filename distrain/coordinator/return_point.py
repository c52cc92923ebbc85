"""The state that a run goes back to from bad numbers: after a step that its config fixes.

It must not depend on when checkpoints were taken, or the run was cut off. So it is a part of the
run's state: every worker has a copy in its host's memory, of a sharded optimizer its own part, and
each checkpoint holds it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distrain.bad_numbers import BadNumbers
from distrain.blame import check_finite
from distrain.coordinator.run_state import RunState
from distrain.parallel.optimizer_state import Held, OptimizerState
from distrain.parallel.ownership import Ownership
from distrain.step import TrainingStep

MODEL, OPTIMIZER, AVERAGE, BEST = (
    f"return_{name}" for name in ("model", "optimizer", "average", "best")
)
"""Groups of tensors in a checkpoint."""

GROUPS = (MODEL, OPTIMIZER, AVERAGE, BEST)

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class ReturnPoint:
    """All of a run's state after one step; tensors are copies in the host's memory.

    Attributes:
        optimizer: What this worker has of it.
        best: The best weights at that time, where they are to be restored.
    """

    run: RunState
    model: Tensors
    optimizer: Held
    average: Tensors
    best: dict[str, torch.Tensor]


Described = tuple[dict[str, Tensors], dict[str, Any] | None]
"""A return point as a checkpoint holds it: groups of tensors, and plain values."""


class ReturnPoints:
    """Keeps the newest one.

    Attributes:
        newest: None before the first, and where the run never goes back.
    """

    def __init__(self, rule: BadNumbers, model: torch.nn.Module, step: TrainingStep) -> None:
        """`rule` says after which steps, if the run may go back at all."""
        self._every_steps = rule.every_steps if rule.may_go_back else None
        self._model, self._step = model, step
        self.newest: ReturnPoint | None = None

    def keep(self, state: RunState, best: dict[str, torch.Tensor], epoch: int) -> None:
        """Copies the state before a step, if it is one to go back to; `epoch` is the step's.

        Raises:
            RuinedWeightsError: it is not one to go back to.
        """
        if not self._is_at_one(state) or (self.newest and self.newest.run.step == state.step):
            return
        check_finite(self._model, state.step, epoch)
        self.newest = ReturnPoint(
            state,
            host_copies(self._model.state_dict()),
            self._ownership.held(),
            host_copies(self._step.average.state()),
            best,
        )

    def go_back(self) -> ReturnPoint:
        """Sets weights, buffers, average and optimizer as they were; all workers call it.

        Raises:
            DivergedError: the workers did not keep the same state.
        """
        point = self.newest
        assert point is not None
        with self._step.standing.going_back_to(point.run.step):
            self._model.load_state_dict(point.model)
            self._step.average.take_up(point.average)
            self._ownership.take(point.optimizer)
        self._step.check.compare_anew(point.run.step)
        return point

    def described(
        self, state: RunState, best: Tensors, optimizer: Callable[[Held], OptimizerState]
    ) -> Described:
        """What goes with a copy of a state; `optimizer` gives what is wanted of the optimizer's."""
        point = self.newest
        passes = state.numbers.pass_until > state.step
        if point is None or (self._is_at_one(state) and not passes):
            return {}, None  # the state will be kept as the next point itself
        tensors, numbers = optimizer(point.optimizer)
        groups: dict[str, Tensors] = {
            MODEL: point.model,
            OPTIMIZER: tensors,
            AVERAGE: point.average,
        }
        if point.best is not best:
            groups[BEST] = point.best
        values = {
            "run": point.run.to_json(),
            "optimizer": numbers,
            "has_own_best": point.best is not best,
        }
        return {name: group for name, group in groups.items() if group}, values

    def take_up(
        self,
        groups: Mapping[str, Tensors],
        values: Mapping[str, Any],
        best: dict[str, torch.Tensor],
    ) -> None:
        """Takes what `described` gave; `best` are the best weights of the checkpoint itself."""
        own = dict(groups[BEST]) if values["has_own_best"] else best
        self.newest = ReturnPoint(
            RunState.from_json(values["run"]),
            host_copies(groups[MODEL]),
            self._ownership.own(groups[OPTIMIZER], values["optimizer"]),
            host_copies(groups[AVERAGE]),
            own,
        )

    @property
    def _ownership(self) -> Ownership:
        return self._step.update.ownership

    def _is_at_one(self, state: RunState) -> bool:
        return self._every_steps is not None and state.step % self._every_steps == 0


def host_copies(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Copies in the host's memory; a tensor's strides stay."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
