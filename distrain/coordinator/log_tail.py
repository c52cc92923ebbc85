"""What an event log tells, read from its end where its length must not count."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

BLOCK_BYTES = 1 << 16

_NO_SCORES = (
    *("event", "epoch", "step", "seconds", "samples_per_s", "times_back", "time"),
    *("confusion", "largest_confusions"),
)
"""What else an epoch's line has."""


def cut_back(path: Path, step: int, times_back: int = 0, epochs: int | None = None) -> None:
    """Cuts a log after its last whole line of a step up to `step`, before any of a later one.

    A checkpoint is told of when it is written: that may be some steps later. And a run that has
    gone back comes to a step again: `times_back` is how often it had, until then.

    An epoch's line is taken out where the run that goes on has fewer `epochs` behind: it stands
    before that epoch's evaluation, which comes again.

    Raises:
        OSError: it can't be read or cut.
    """
    kept = 0
    with path.open("r+b") as file:
        for line, end in lines_from_end(file):
            event = _event(line)
            if "step" not in event:
                continue
            if (event.get("times_back", 0), event["step"]) > (times_back, step):
                kept = 0
                continue
            kept = kept or end
            if event["event"] == "step":
                break
        stray, after = _epochs_beyond(file, kept, epochs)
        file.truncate(kept if stray is None else stray)
        file.seek(0, os.SEEK_END)
        file.write(after)
        file.flush()
        os.fsync(file.fileno())


def _epochs_beyond(file: BinaryIO, stop: int, epochs: int | None) -> tuple[int | None, bytes]:
    """Where the first line before `stop` begins that tells of an epoch beyond; what stays after it.

    They follow the last step's line.
    """
    found: int | None = None
    kept, after = b"", b""
    for line, end in lines_from_end(file):
        if epochs is None or end > stop:
            continue
        event = json.loads(line)
        if event["event"] == "step":
            break
        if event["event"] == "epoch" and event["epoch"] > epochs:
            found, after = end - len(line), kept
        else:
            kept = line + kept
    return found, after


def last_step(path: Path) -> int:
    """The last step that a log tells of whole; 0 for none.

    Raises:
        OSError: it is there and can't be read.
    """
    if not path.exists():
        return 0
    with path.open("rb") as file:
        events = (_event(line) for line, _ in lines_from_end(file))
        return next((int(event["step"]) for event in events if event.get("event") == "step"), 0)


def lines_from_end(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The lines, the last first, each with the offset behind it."""
    start, carried = file.seek(0, os.SEEK_END), b""
    while start:
        stop, start = start, max(0, start - BLOCK_BYTES)
        file.seek(start)
        lines = (file.read(stop - start) + carried).splitlines(keepends=True)
        end = stop + len(carried)
        # The first of a block may have begun before it.
        carried = lines.pop(0) if start else b""
        for line in reversed(lines):
            yield line, end
            end -= len(line)


def _event(line: bytes) -> dict[str, Any]:
    """What a line tells; nothing where it is not whole."""
    try:
        return dict(json.loads(line)) if line.endswith(b"\n") else {}
    except ValueError:
        return {}


def scores_in(epoch: Mapping[str, Any]) -> dict[str, float | None]:
    """The scores that an epoch's event tells; None for one that is not finite."""
    return {name: score for name, score in epoch.items() if name not in _NO_SCORES}
