"""When a run's state is written, what is kept of it, and how all workers take it up again."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from distrain.config import CheckpointConfig
from distrain.coordinator.checkpoint import CheckpointContents, write_checkpoint
from distrain.coordinator.checkpoint_store import CheckpointStore
from distrain.coordinator.monitor import MODES, beats, settled_mode
from distrain.coordinator.observers import EpochRecord
from distrain.coordinator.return_point import GROUPS, Described, ReturnPoints
from distrain.coordinator.run_state import RunState
from distrain.errors import ConfigError
from distrain.learn.averaging import AveragedWeights
from distrain.parallel.communicator import broadcast_bytes
from distrain.parallel.optimizer_state import OptimizerState
from distrain.parallel.ownership import Ownership
from distrain.parallel.world import World

TRY_AGAIN_S = 10.0
"""After a checkpoint could not be written."""

MODEL, OPTIMIZER, BEST, AVERAGE = "model", "optimizer", "best", "average"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Checkpoint(CheckpointConfig):
    """When a run's state is written, and which states are kept: a job's `[checkpoint]`.

    Attributes:
        every_steps: Write after every so many steps.
        every_seconds: Write when so many seconds have passed since the last time.
        snapshot_every: Copy the state to the host's shared memory after every so many steps, for a
            restart; None for as often as takes 2% of the time, 0 for never.
        keep_last: Keep the newest so many.
        keep_best: Keep the so many best as well, taken at the ends of epochs.
        keep_every: Write after every so many steps, too, and keep those for good.
        monitor: What makes one better: `loss`, a metric, or one with `val_`.
        mode: Whether less or more is better; "auto" takes less for losses and errors.
        store: Where to write, such as `s3://bucket/prefix`, any address that
            `pyarrow.fs.FileSystem.from_uri` takes; None for the run's folder. Each run has a place
            of its own there, by its id.
    """

    def __post_init__(self) -> None:
        """Checks ranges, and what a job file's types have checked already."""
        super().__post_init__()
        if self.mode not in MODES:
            raise ConfigError(f'checkpoint.mode is {self.mode!r}; give "auto", "min" or "max"')

    def settled(self, directions: Mapping[str, bool | None]) -> "Checkpoint":
        """The same with "auto" read as "min" or "max"; see `settled_mode` for arguments, errors."""
        if not self.keep_best:
            return self
        mode = settled_mode("checkpoint.keep_best goes by", self.monitor, self.mode, directions)
        return replace(self, mode=mode)


def best_steps(policy: Checkpoint, epochs: Sequence[EpochRecord]) -> list[int]:
    """The steps of the best epochs' ends, the best first; ties go to the earlier, NaN never."""
    best: list[EpochRecord] = []
    for record in epochs if policy.keep_best else ():
        score = record.scores[policy.monitor]
        if math.isnan(score):
            continue
        place = len(best)
        while place and beats(
            policy.monitor, policy.mode, score, best[place - 1].scores[policy.monitor]
        ):
            place -= 1
        best.insert(place, record)
    return [record.step for record in best[: policy.keep_best]]


def superfluous_steps(policy: Checkpoint, steps: Sequence[int], state: RunState) -> list[int]:
    """Which of the steps that there are checkpoints of need not be kept, that of `state` being one.

    Those of later steps are of a time that the run has gone back from.
    """
    behind = [step for step in steps if step <= state.step]
    kept = {*sorted(behind)[-policy.keep_last :], *best_steps(policy, state.epochs)}
    every = policy.keep_every
    kept |= {step for step in behind if every is not None and step % every == 0}
    return [step for step in steps if step not in kept]


def contents(
    state: RunState,
    model: Tensors,
    optimizer: OptimizerState,
    best: Tensors,
    average: Tensors,
    back_to: Described = ({}, None),
) -> CheckpointContents:
    """All of a run's state, as a checkpoint holds it; `model` is the module's state.

    `back_to` is the earlier state that the run may go back to.
    """
    tensors, numbers = optimizer
    groups: dict[str, Tensors] = {MODEL: model, OPTIMIZER: tensors}
    groups |= {name: more for name, more in ((BEST, best), (AVERAGE, average)) if more}
    point_groups, point = back_to
    values = {"run": state.to_json(), "optimizer": numbers, "return_point": point}
    return CheckpointContents(groups | point_groups, values)


def is_scheduled(policy: Checkpoint, state: RunState) -> bool:
    """Whether the state after this step is to be written, whatever the clock says."""
    for every in (policy.every_steps, policy.keep_every):
        if every is not None and state.step % every == 0:
            return True
    at_epochs_end = bool(state.epochs) and state.epochs[-1].step == state.step
    return at_epochs_end and state.step in best_steps(policy, state.epochs)


class CheckpointKeeper:
    """Rank 0's part: writes what is due, and removes what is superfluous."""

    def __init__(
        self, policy: Checkpoint, store: CheckpointStore, check: Callable[[], None]
    ) -> None:
        """`store` has the run's checkpoints; `check` raises where another start has taken over."""
        self._policy, self._store, self._check = policy, store, check
        self._last = time.monotonic()
        self._again: float | None = None
        self._has_leftovers = True

    def is_time(self) -> bool:
        """Whether the clock says that the next step's state is to be written."""
        now, every_s = time.monotonic(), self._policy.every_seconds
        if self._again is not None and now >= self._again:
            return True
        return every_s is not None and now - self._last >= every_s

    def write(self, state: RunState, written: CheckpointContents) -> int:
        """Writes a checkpoint, then removes those that need not be kept; gives its bytes.

        One that could not be written is tried again soon, of the step that the run is at then.

        Raises:
            StorageError: it could not be written; the earlier ones stand.
            ConfigError: a newer start has taken the run over.
        """
        self._check()
        self._last = time.monotonic()
        self._again = self._last + TRY_AGAIN_S
        if self._has_leftovers:
            self._store.clear_leftovers()
        self._has_leftovers = True
        num_bytes = write_checkpoint(self._store, state.step, written, self._check)
        self._again, self._has_leftovers = None, False
        self._check()
        for step in superfluous_steps(self._policy, self._store.steps(), state):
            self._store.remove(step)
        return num_bytes


def take_up(
    found: CheckpointContents | None,
    model: torch.nn.Module,
    ownership: Ownership,
    average: AveragedWeights,
    world: World,
    back_to: ReturnPoints,
) -> tuple[RunState, dict[str, torch.Tensor]]:
    """Sets every worker's state from the checkpoint that rank 0 has read, if it has.

    Returns:
        The run's state, and the best weights so far.
    """
    encoded = b"" if found is None else json.dumps(found.state).encode()
    state = broadcast_bytes(encoded, world.communicator, world.device)
    if not state:
        return RunState(), {}
    values = json.loads(state)
    names = (MODEL, OPTIMIZER, BEST, AVERAGE, *(GROUPS if values["return_point"] else ()))
    groups = {group: _broadcast_group(group, found, world) for group in names}
    model.load_state_dict(groups[MODEL])
    ownership.load_optimizer_state(groups[OPTIMIZER], values["optimizer"])
    average.take_up(groups[AVERAGE])
    if values["return_point"]:
        back_to.take_up(groups, values["return_point"], groups[BEST])
    return RunState.from_json(values["run"]), groups[BEST]


def _broadcast_group(
    group: str, found: CheckpointContents | None, world: World
) -> dict[str, torch.Tensor]:
    encoded = b"" if found is None else save_safetensors(dict(found.tensors.get(group, {})))
    received = broadcast_bytes(encoded, world.communicator, world.device)
    # Cloned: tensors that lie in the received bytes are not aligned (rule 16).
    return {
        name: tensor.clone().to(world.device) for name, tensor in load_safetensors(received).items()
    }
