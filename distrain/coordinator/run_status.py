"""How a run stands or how it ended, read from its folder by whoever asks."""

import fcntl
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from distrain.coordinator.log_tail import lines_from_end, scores_in
from distrain.coordinator.run_layout import (
    CHECKPOINTS,
    EVENTS,
    LOCK,
    RESULT,
    RUNNING,
    STATUS,
    steps_in,
)
from distrain.coordinator.stored_checkpoints import recorded_address
from distrain.errors import ConfigError, UsageError
from distrain.store_address import without_options

LOST = "lost"
"""A run that says it is running, and nothing on this machine runs it."""

_SPEED_STEPS = 50
"""Speed is that of so many last steps."""

_MOST_EVENTS = 20_000
"""So far back the last epoch's scores are looked for."""


MOST_LIFE = 10
"""So many events of a run's life are told."""

_LIFE = (
    *("restart", "resume", "workers", "hang", "slow_rank", "slow_rank_over", "end"),
    *("skip", "go_back", "plateau", "damaged", "checkpoint_failed", "environment"),
)


@dataclass(frozen=True)
class RunStatus:
    """A run, as its folder tells.

    Attributes:
        state: running, done, stopped, failed or lost.
        reason: How it ended; empty while it runs.
        exit_code: What its launcher exited with; None where it runs or was lost.
        step: Steps done, of `steps`.
        epoch: The epoch in hand, or the last one done, of `epochs`; counted from 1.
        starts: How often it was started.
        pid: Of rank 0, on `host`.
        workers: How many there are, or were at the end; None where that was not noted.
        workers_range: How many there may be, as MIN:MAX; None where their number is fixed.
        checkpoint_step: The newest checkpoint's; None without one. It is not verified here.
        checkpoint_store: Where that is, if not in the folder: then the log's word is taken for it.
        loss: Of the last step.
        steps_per_s: Over the last steps of this start.
        seconds_left: At that speed, without the evaluations to come; None where it doesn't run.
        scores: Of the last epoch.
        result: The file with the final weights.
        life: What happened to the run beside steps, the newest last: seconds since 1970, and a
            text.
    """

    state: str
    reason: str
    exit_code: int | None
    step: int
    steps: int
    epoch: int
    epochs: int
    starts: int
    pid: int
    host: str
    workers: int | None
    workers_range: str | None
    checkpoint_step: int | None
    checkpoint_store: str | None
    loss: float | None
    steps_per_s: float | None
    seconds_left: float | None
    scores: Mapping[str, float | None]
    result: str | None
    life: Sequence[tuple[float, str]]


def read_status(folder: Path) -> RunStatus:
    """How the run in a folder stands.

    Raises:
        UsageError: there is no run in it, or its status can't be read.
    """
    path = folder / STATUS
    if not path.is_file():
        raise UsageError(
            f"there is no run in {folder}: it has no {STATUS}; name a folder such as runs/digits"
        )
    try:
        told = dict(json.loads(path.read_bytes()))
        state = str(told["state"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if state == RUNNING and told.get("host") == socket.gethostname() and _is_free(folder / LOCK):
        state = LOST
    steps, epochs = _events(folder / EVENTS)
    last = {**told, **(steps[0] if steps else {})}
    # Steps that were left out have no event; a run that has ended says where it stands.
    step = int(told.get("step", last.get("step", 0)))
    speed = _speed(steps) if state == RUNNING else None
    planned = int(told.get("steps", 0))
    result = folder / RESULT
    store = _store(folder)
    return RunStatus(
        state=state,
        reason=str(told.get("reason", "")),
        exit_code=told.get("exit_code"),
        step=step,
        steps=planned,
        epoch=int(last.get("epoch", 0)),
        epochs=int(told.get("epochs", 0)),
        starts=int(told.get("starts", 0)),
        pid=int(told.get("pid", 0)),
        host=str(told.get("host", "")),
        workers=told.get("workers"),
        workers_range=told.get("workers_range"),
        checkpoint_step=_logged_checkpoint(folder / EVENTS)
        if store
        else max(steps_in(folder / CHECKPOINTS), default=None),
        checkpoint_store=store,
        loss=last.get("loss"),
        steps_per_s=speed,
        seconds_left=max(0, planned - step) / speed if speed else None,
        scores=scores_in(epochs[0]) if epochs else {},
        result=str(result) if result.is_file() else None,
        life=_life(folder / EVENTS),
    )


def _store(folder: Path) -> str | None:
    try:
        address = recorded_address(folder)
    except (UsageError, ConfigError):  # whoever goes on with the run is told of it
        return None
    return None if address is None else without_options(address)


def _logged_checkpoint(path: Path) -> int | None:
    """The step of the newest checkpoint that the log tells of."""
    events = islice(_from_end(path), _MOST_EVENTS)
    return next((event["step"] for event in events if event.get("event") == "checkpoint"), None)


def _is_free(path: Path) -> bool:
    """Whether nobody holds a lock."""
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _events(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The last steps of the newest start and the last epoch's event, newest first."""
    steps: list[dict[str, Any]] = []
    epochs: list[dict[str, Any]] = []
    same_start = True
    for event in islice(_from_end(path), _MOST_EVENTS):
        kind = event.get("event")
        if kind in ("step", "go_back") and (same_start or not steps) and len(steps) < _SPEED_STEPS:
            steps.append(event)
        elif kind == "epoch" and not epochs and not (steps and event["step"] > steps[0]["step"]):
            epochs.append(event)  # one of a later step is of a time that the run has gone back from
        elif kind == "begin":
            same_start = False
        if epochs and (len(steps) == _SPEED_STEPS or not same_start):
            break
    return steps, epochs


def _life(path: Path) -> list[tuple[float, str]]:
    """The newest events of a run's life, in their order."""
    told = (event for event in islice(_from_end(path), _MOST_EVENTS) if event["event"] in _LIFE)
    texts = [
        (float(event["time"]), str(event.get("text") or event.get("reason", "")))
        for event in islice(told, MOST_LIFE)
    ]
    return texts[::-1]


def _from_end(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            for line, _ in lines_from_end(file):
                try:
                    event = json.loads(line)
                except ValueError:  # the line that is being written, or that a crash has cut
                    continue
                if isinstance(event, dict):
                    yield event
    except FileNotFoundError:
        return


def _speed(steps: list[dict[str, Any]]) -> float | None:
    """Steps a second, over the gaps between some steps, newest first."""
    if len(steps) < 2:
        return None
    seconds = steps[0]["time"] - steps[-1]["time"]
    return float((len(steps) - 1) / seconds) if seconds > 0 else None
