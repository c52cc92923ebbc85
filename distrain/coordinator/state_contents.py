"""A run's state as it is kept: all of it for a checkpoint, a worker's part of it for a snapshot."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.checkpointing import OPTIMIZER, contents
from distrain.coordinator.return_point import OPTIMIZER as RETURN_OPTIMIZER
from distrain.coordinator.return_point import Described, ReturnPoints
from distrain.coordinator.run_state import RunState
from distrain.coordinator.snapshot_parts import LAYOUTS
from distrain.learn.averaging import AveragedWeights
from distrain.parallel.optimizer_state import Held, OptimizerState
from distrain.parallel.ownership import Ownership

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class WholeOptimizer:
    """The whole optimizer's state as it is, and what the run may go back to."""

    now: OptimizerState = field(default_factory=lambda: ({}, {}))
    back_to: Described = field(default_factory=lambda: ({}, None))


@dataclass(frozen=True)
class StateContents:
    """Brings together what is to be kept."""

    ownership: Ownership
    average: AveragedWeights
    back_to: ReturnPoints

    def optimizer(
        self, state: RunState, best: Weights, *, is_needed: bool, apart: bool = False
    ) -> WholeOptimizer:
        """The optimizer's state where it `is_needed` here.

        Of a sharded one all workers call it, `apart` as in `Ownership.optimizer_state`.
        """

        def whole(held: Held | None) -> OptimizerState:
            if not (is_needed or self.ownership.is_shared):
                return {}, {}
            return self.ownership.optimizer_state(held, apart=apart)

        return WholeOptimizer(whole(None), self.back_to.described(state, best, whole))

    def whole(
        self, state: RunState, best: Weights, model: Weights, optimizer: WholeOptimizer
    ) -> CheckpointContents:
        """What a checkpoint of the state holds."""
        average = self.average.state()
        return contents(state, model, optimizer.now, best, average, optimizer.back_to)

    def part(
        self, state: RunState, best: Weights, model: Weights, *, has_rest: bool
    ) -> CheckpointContents:
        """This worker's part of a sharded optimizer's state; with the rest, what all hold alike."""
        own = self.ownership.part
        optimizer = WholeOptimizer(own(), self.back_to.described(state, best, own))
        found = self.whole(state, best, model, optimizer)
        if has_rest:
            return CheckpointContents(
                found.tensors, {**found.state, LAYOUTS: self.ownership.layouts()}
            )
        point = found.state["return_point"]
        values = {
            "optimizer": found.state["optimizer"],
            "return_point": point and {"optimizer": point["optimizer"]},
        }
        groups = {
            group: tensors
            for group, tensors in found.tensors.items()
            if group in (OPTIMIZER, RETURN_OPTIMIZER)
        }
        return CheckpointContents(groups, values)


def optimizer_bytes(part: CheckpointContents) -> int:
    """What of a part is about as much on every worker."""
    groups = (part.tensors.get(group, {}) for group in (OPTIMIZER, RETURN_OPTIMIZER))
    return sum(tensor.nbytes for group in groups for tensor in group.values())
