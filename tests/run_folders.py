"""What a run leaves in its folder, as tests compare it."""

import hashlib
import json
from pathlib import Path
from typing import Any


def events(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of the run's log; none where it has not begun."""
    path = folder / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def named(folder: Path, name: str) -> list[dict[str, Any]]:
    """The events of that name."""
    return [event for event in events(folder) if event["event"] == name]


def last_step(folder: Path) -> int:
    """The newest step that the log tells of."""
    return max((event["step"] for event in named(folder, "step")), default=0)


def told(folder: Path) -> list[dict[str, Any]]:
    """What the log of a run that has ended says of steps and epochs, in its order, without times.

    Here every line has to be whole.
    """
    dropped = ("time", "seconds", "samples_per_s")
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in event.items() if name not in dropped}
        for event in lines
        if event["event"] in ("step", "epoch")
    ]


def status(folder: Path) -> dict[str, Any]:
    """What `status.json` says."""
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


def result(folder: Path) -> str:
    """The SHA-256 of the result."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


Outcome = tuple[str, list[dict[str, Any]]]


def outcome(folder: Path) -> Outcome:
    """All that has to be the same whatever happened to a run."""
    return result(folder), told(folder)
