"""What checkpoints a run has, by their state.json alone: nothing is verified, torch not needed."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distrain.config import CheckpointConfig
from distrain.coordinator.run_layout import CHECKPOINTS, JOB, STATUS, folder_name, steps_in
from distrain.errors import UsageError

_STATE = "state.json"


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint, as its state.json tells.

    Attributes:
        step: Steps done.
        path: Its folder.
        size_bytes: Of all its files, as they lie there.
        written: Unix time; None where it can't be told.
        epoch: The epoch in hand, or the one that is just done; counted from 1.
        ends_epoch: Whether an epoch is just done, its evaluation included.
        scores: Of that epoch, by name; a score that is not finite is None.
        run: The coordinator's state, for whoever wants more of it.
        problem: Why state.json can't be read; empty where it can.
    """

    step: int
    path: Path
    size_bytes: int
    written: float | None
    epoch: int | None = None
    ends_epoch: bool = False
    scores: Mapping[str, float | None] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def checkpoint_root(run: Path) -> Path:
    """Where a run's checkpoints stand; none may have been written yet.

    Raises:
        UsageError: there is no run in the folder.
    """
    if not any((run / name).exists() for name in (JOB, STATUS, CHECKPOINTS)):
        raise UsageError(
            f"there is no run in {run}: name the folder that holds its {JOB} and {CHECKPOINTS}"
        )
    return run / CHECKPOINTS


def listed_checkpoints(root: Path) -> list[ListedCheckpoint]:
    """All that have a checkpoint's name, oldest first; those removed meanwhile are left out."""
    found = (_listed(root / folder_name(step), step) for step in steps_in(root))
    return [one for one in found if one is not None]


def set_aside(root: Path) -> list[str]:
    """The folders of checkpoints that the run has found damaged, and keeps out of the way."""
    return sorted(path.name for path in root.glob("damaged-step-*"))


def _listed(folder: Path, step: int) -> ListedCheckpoint | None:
    state = folder / _STATE
    size, written = 0, None
    try:
        size = sum(path.lstat().st_size for path in folder.iterdir())
        written = state.stat().st_mtime
        run = json.loads(state.read_bytes())["body"]["state"]["run"]
        epochs = run["epochs"]
        ends = bool(epochs) and epochs[-1]["step"] == step
        return ListedCheckpoint(
            step,
            folder,
            size,
            written,
            epoch=len(epochs) + (not ends),
            ends_epoch=ends,
            scores=dict(epochs[-1]["scores"]) if ends else {},
            run=run,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if not folder.exists():
            return None
        why = f"{type(error).__name__}: {error}"
        return ListedCheckpoint(step, folder, size, written, problem=f"{_STATE}: {why}")


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
