"""What checkpoints a run has, by their state.json alone: nothing is verified, torch not needed."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from distrain.config import CheckpointConfig
from distrain.coordinator.checkpoint_store import (
    STATE,
    CheckpointStore,
    DamagedCheckpointError,
)


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint, as its state.json tells.

    Attributes:
        step: Steps done.
        path: Its folder, or the address of it.
        size_bytes: Of all its files, as they lie there.
        written: Unix time; None where it can't be told.
        epoch: The epoch in hand, or the one that is just done; counted from 1.
        ends_epoch: Whether an epoch is just done, its evaluation included.
        scores: Of that epoch, by name; a score that is not finite is None.
        run: The coordinator's state, for whoever wants more of it.
        problem: Why state.json can't be read; empty where it can.
    """

    step: int
    path: str
    size_bytes: int
    written: float | None
    epoch: int | None = None
    ends_epoch: bool = False
    scores: Mapping[str, float | None] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def listed_checkpoints(store: CheckpointStore) -> list[ListedCheckpoint]:
    """All that have a checkpoint's name, oldest first; those removed meanwhile are left out."""
    found = (_listed(store, step) for step in store.steps())
    return [one for one in found if one is not None]


def _listed(store: CheckpointStore, step: int) -> ListedCheckpoint | None:
    place = store.name_of(step)
    size, written = 0, store.written(step)
    try:
        with store.reading(step):
            size = sum(store.files(step).values())
            with store.open(step, STATE) as file:
                text = file.read()
        run = json.loads(text)["body"]["state"]["run"]
        epochs = run["epochs"]
        ends = bool(epochs) and epochs[-1]["step"] == step
        return ListedCheckpoint(
            step,
            place,
            size,
            written,
            epoch=len(epochs) + (not ends),
            ends_epoch=ends,
            scores=dict(epochs[-1]["scores"]) if ends else {},
            run=run,
        )
    except DamagedCheckpointError as error:
        problem = str(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{STATE}: {type(error).__name__}: {error}"
    return (
        ListedCheckpoint(step, place, size, written, problem=problem) if store.has(step) else None
    )


def kept_by(
    policy: CheckpointConfig, steps: Collection[int], best: Collection[int]
) -> dict[int, list[str]]:
    """For each step that there is a checkpoint of, what keeps it; nothing: it may go any time.

    `best` are the steps of the best epochs' ends.
    """
    last = set(sorted(steps)[-policy.keep_last :])
    every = policy.keep_every
    return {
        step: [
            name
            for name, holds in (
                ("last", step in last),
                ("best", step in best),
                (f"every {every:,}" if every else "", every is not None and step % every == 0),
            )
            if holds
        ]
        for step in steps
    }
