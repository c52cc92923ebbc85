"""Another number of workers for a run under way: how a person's request reaches its launcher.

The request is a file in the run's folder, which names the launch that it is for: a launcher takes
its own, and one that has been left behind by a launch which is gone is nobody's.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from data_pipeline.durable import write_whole
from distrain.coordinator.generation import launch_in
from distrain.coordinator.run_layout import RESIZE, RUNNING
from distrain.coordinator.run_status import read_status
from distrain.coordinator.stops import BEGAN
from distrain.errors import UsageError
from launch.number_range import NumberRange

ANSWER_S = 10.0
"""A launcher looks every 0.1 s, unless its workers are just being started."""


class Requests:
    """A launcher's side."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the run's; it may not be there yet."""
        self._path = folder / RESIZE

    def take(self) -> int | None:
        """The number of workers that is asked for, last of all; None where nobody asks."""
        if self._asked(self._path) is None:
            return None
        # Set aside before it counts: one written meanwhile is taken in its place, or the next time.
        aside = self._path.with_name(f"{self._path.name}.taken")
        try:
            self._path.replace(aside)
            return self._asked(aside)
        except OSError:  # its author has taken it back
            return None
        finally:
            with suppress(OSError):
                aside.unlink()

    def _asked(self, path: Path) -> int | None:
        """What a request says; None where it is not there, is none, or is for another launch."""
        try:
            asked = json.loads(path.read_bytes())
            return int(asked["workers"]) if asked["launch"] == os.environ[BEGAN] else None
        except (OSError, ValueError, TypeError, KeyError):
            return None


def resize(folder: Path, workers: int) -> str:
    """Asks the launcher of the run in a folder for another number of workers; what it says.

    Raises:
        UsageError: the run doesn't go on, its number of workers is fixed, this one is out of its
            range, or its launcher does not answer.
        StorageError: the folder can't be written.
    """
    status = read_status(folder)
    if status.state != RUNNING:
        raise UsageError(
            f"the run in {folder} does not go on now ({status.state}): start it with the number of "
            "workers that it is to have"
        )
    if status.workers_range is None:
        raise UsageError(
            f"the run in {folder} was started with a fixed number of workers: stop it by Ctrl-C, "
            "and start it again with --workers MIN:MAX"
        )
    allowed = NumberRange.parse("--workers", status.workers_range)
    if not allowed.least <= workers <= allowed.most:
        raise UsageError(f"{workers} workers are asked for; the run was started with {allowed}")
    if workers == status.workers:
        return f"the run in {folder} has {workers} workers already"
    asked = {"launch": launch_in(folder), "workers": workers}
    write_whole(folder / RESIZE, json.dumps(asked).encode() + b"\n")
    end = time.monotonic() + ANSWER_S
    while (folder / RESIZE).exists():
        if time.monotonic() > end:
            (folder / RESIZE).unlink(missing_ok=True)
            raise UsageError(
                f"the launcher of the run in {folder} did not take the request within "
                f"{ANSWER_S:g} s: is it still there? The run is on {status.host}"
            )
        time.sleep(0.02)
    return (
        f"the run in {folder} saves, and goes on with {workers} workers; "
        f"it has had {status.workers}"
    )
