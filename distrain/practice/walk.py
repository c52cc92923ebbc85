"""The way to a step: from which checkpoint, and whether each step on it is the recorded one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distrain.bad_numbers import NumbersState
from distrain.coordinator.checkpoint import CheckpointContents, read_checkpoint
from distrain.coordinator.checkpoint_store import CheckpointStore, DamagedCheckpointError
from distrain.coordinator.checkpointing import Checkpoint
from distrain.coordinator.observers import Ending, EpochRecord, finite_or_none
from distrain.errors import UsageError
from distrain.parallel.split import BatchPlan
from distrain.step import StepResult

NUMBERS = ("loss", "grad_norm", "lr")
"""What the log has of a step that must come out again."""

_STEP, _GO_BACK = b'{"event": "step"', b'{"event": "go_back"'


def recorded_steps(path: Path, first: int, last: int) -> dict[int, dict[str, Any]]:
    """The step events from `first` to `last`, by step; of one that was done twice the newest.

    A line that is being written, or that a crash has cut, tells of nothing.
    """
    found: dict[int, dict[str, Any]] = {}
    if not path.exists():
        return found
    with path.open("rb") as file:
        for line in file:
            if line.startswith(_STEP) and line.endswith(b"\n"):
                event = json.loads(line)
                if first <= event["step"] <= last:
                    found[event["step"]] = event
    return found


def check_history(path: Path, step: int, numbers: NumbersState) -> None:
    """Refuses a step that the walk from a state does not come to as the run came to it.

    Raises:
        UsageError: the run left it out, or went back before it, which the state does not know of.
    """
    if step <= numbers.pass_until:
        raise UsageError(
            f"step {step} was left out: the run went back from bad numbers, and passed over the "
            f"steps up to {numbers.pass_until}"
        )
    times_back = 0
    done_after = 0
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                if line.startswith(_GO_BACK) and line.endswith(b"\n"):
                    times_back = json.loads(line)["times_back"]
                elif line.startswith(_STEP) and line.endswith(b"\n"):
                    done_after = times_back if json.loads(line)["step"] == step else done_after
    if done_after > numbers.times_back:
        raise UsageError(
            f"step {step} was done again after the run went back from bad numbers, and no "
            "checkpoint is left from between: checkpoint.keep_last and keep_every keep more"
        )


def numbers_of(result: StepResult) -> dict[str, float | None]:
    """Those of a step's numbers that are recorded, as the log has them."""
    return {
        "loss": finite_or_none(result.totals.loss),
        "grad_norm": finite_or_none(result.grad_norm),
        "lr": finite_or_none(result.lr),
    }


def differing(
    recorded: Mapping[str, Any], numbers: Mapping[str, float | None]
) -> dict[str, tuple[float | None, float | None]]:
    """What is recorded and what has come out now, where they are not the same to the last bit.

    JSON has each float64 in as many digits as tell it from all others.
    """
    return {
        name: (recorded.get(name), value)
        for name, value in numbers.items()
        if recorded.get(name) != value
    }


class Listener:
    """Listens to the loop, and holds each step against the record."""

    def __init__(self, recorded: Mapping[int, Mapping[str, Any]]) -> None:
        """`recorded`: the steps that are on record, by step."""
        self.recorded = recorded
        self.steps_done = self.num_compared = 0
        self.first_difference: int | None = None
        self.result: StepResult | None = None

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """Nothing."""

    def step(self, result: StepResult) -> None:
        """Compares."""
        self.steps_done, self.result = result.batch.step + 1, result
        event = self.recorded.get(self.steps_done)
        if event is not None:
            self.num_compared += 1
            if differing(event, numbers_of(result)) and self.first_difference is None:
                self.first_difference = self.steps_done

    def epoch(self, record: EpochRecord) -> None:
        """Nothing."""

    def note(self, event: str, text: str, **fields: Any) -> None:
        """Nothing."""

    def end(self, ending: Ending) -> None:
        """Nothing."""


def checkpoint_before(
    store: CheckpointStore, step: int
) -> tuple[int, CheckpointContents | None, list[str]]:
    """The newest good checkpoint of less than `step` steps; 0 and None where there is none.

    Returns:
        Its number of steps, its contents, and what was wrong with newer ones: they stay in place.
    """
    damaged: list[str] = []
    for at in reversed([at for at in store.steps() if at < step]):
        try:
            return at, read_checkpoint(store, at), damaged
        except DamagedCheckpointError as error:
            damaged.append(f"damaged   {error}: passed over")
    return 0, None, damaged


def walk_lines(
    start: int, step: int, store: CheckpointStore, policy: Checkpoint | None
) -> list[str]:
    """From where it is walked, and how there would be less to walk."""
    steps = step - start
    origin = f"after the checkpoint of step {start}" if start else "the run's begin, by its seed"
    lines = [f"walk      {steps} step{'s' * (steps > 1)} to step {step}, from {origin}"]
    every = policy.every_steps if policy is not None else None
    is_kept = steps <= (every or 1)
    if is_kept:
        return lines
    later = [at for at in store.steps() if at >= step]
    if later and policy is not None:
        lines += [
            f"          nearer checkpoints are not kept any more: checkpoint.keep_last (now "
            f"{policy.keep_last})",
            "          keeps more of the newest, checkpoint.keep_every every n-th for good",
        ]
    return lines
