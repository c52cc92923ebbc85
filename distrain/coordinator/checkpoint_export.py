"""The weights in a run's checkpoints, for whoever has no use for the rest of its state."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import torch

from data_pipeline.errors import DataError
from distrain.config import CheckpointConfig
from distrain.coordinator.checkpoint import CheckpointContents, read_checkpoint
from distrain.coordinator.checkpoint_store import CheckpointStore, DamagedCheckpointError
from distrain.coordinator.checkpointing import AVERAGE, BEST, MODEL, Checkpoint, best_steps
from distrain.coordinator.run_state import RunState
from distrain.errors import UsageError
from distrain.learn.averaging import COUNT, PREFIX

Which = Literal["model", "best", "average"]
"""Of a checkpoint's weights: as trained, the best epoch's, or their average."""

_MOST_NAMED = 10


@dataclass(frozen=True)
class ChosenWeights:
    """Some weights of a run.

    Attributes:
        tensors: A module's state by name, on the host.
        step: The step of the checkpoint that they were read from.
        described: Which they are, for a person: `the average of the weights after step 120`.
    """

    tensors: Mapping[str, torch.Tensor]
    step: int
    described: str


def chosen_weights(
    store: CheckpointStore, step: int | None, which: Which, policy: CheckpointConfig | None
) -> ChosenWeights:
    """Weights from the checkpoint of a step, or from the newest.

    The best are those that early stopping holds for its end; without it, and with no step given,
    those that were measured at the end of the best epoch whose checkpoint is kept.

    Raises:
        UsageError: there is no such checkpoint, or it has no such weights.
        DataError: it is damaged, or was removed while it was read.
    """
    chosen = existing_step(store, step)
    contents = read_whole(store, chosen)
    if which == BEST and BEST not in contents.tensors and step is None:
        best = _best_that_is_there(store, contents, policy)
        if best is not None:
            return _measured(read_whole(store, best), best)
    return _of_kind(contents, chosen, which)


def existing_step(store: CheckpointStore, step: int | None) -> int:
    """The step itself, or the newest there is a checkpoint of.

    Raises:
        UsageError: there is none; it names those that there are.
    """
    steps = store.steps()
    if not steps:
        raise UsageError(f"there is no checkpoint in {store.where}: the run has written none yet")
    if step is not None and step not in steps:
        more = "..., " if len(steps) > _MOST_NAMED else ""
        named = more + ", ".join(map(str, steps[-_MOST_NAMED:]))
        raise UsageError(
            f"there is no checkpoint of step {step} in {store.where}; there are: {named}"
        )
    return steps[-1] if step is None else step


def read_whole(store: CheckpointStore, step: int) -> CheckpointContents:
    """Reads and verifies a checkpoint, and leaves a damaged one where it is.

    Raises:
        DataError: it is damaged, or was removed while it was read.
    """
    try:
        return read_checkpoint(store, step)
    except DamagedCheckpointError as error:
        if not store.has(step):
            raise DataError(removed_text(step)) from error
        raise DataError(f"{error}; name another with --step") from error


def removed_text(step: int) -> str:
    """Says that a checkpoint has gone while it was read."""
    return (
        f"the checkpoint of step {step} was removed while it was read: the run goes on, and keeps "
        "newer ones. Try again, or name one that stays (`distrain checkpoint list`)"
    )


def _best_that_is_there(
    store: CheckpointStore, newest: CheckpointContents, policy: CheckpointConfig | None
) -> int | None:
    if policy is None:
        return None
    epochs = RunState.from_json(newest.state["run"]).epochs
    there = store.steps()
    return next((s for s in best_steps(Checkpoint(**asdict(policy)), epochs) if s in there), None)


def _measured(contents: CheckpointContents, step: int) -> ChosenWeights:
    """What the scores are of: the average, where there is one."""
    return _of_kind(contents, step, AVERAGE if AVERAGE in contents.tensors else MODEL)


def _of_kind(contents: CheckpointContents, step: int, which: str) -> ChosenWeights:
    model, found = contents.tensors[MODEL], contents.tensors.get(which)
    if found is None:
        raise UsageError(f"the checkpoint of step {step} has no {_ABSENT[which]}")
    if which == AVERAGE:
        averages = {
            name.removeprefix(PREFIX): tensor for name, tensor in found.items() if name != COUNT
        }
        return ChosenWeights(
            {**model, **averages}, step, f"the average of the weights up to step {step}"
        )
    if which == BEST:
        return ChosenWeights(found, step, f"the best epoch's weights, of those up to step {step}")
    return ChosenWeights(found, step, f"the weights after step {step}")


_ABSENT = {
    BEST: (
        "best weights: a run holds them with early_stopping.restore_best, or keeps the "
        "checkpoints of its best epochs with checkpoint.keep_best"
    ),
    AVERAGE: "average: a run has one with [average], once it has begun",
}
