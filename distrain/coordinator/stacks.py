"""What every thread of a worker is doing, as files in the run's folder."""

import time
from pathlib import Path

from distrain.coordinator.pulse import Pulse, place_of
from distrain.coordinator.run_layout import STACKS


def stacks_path(pulse: Pulse) -> Path | None:
    """Where a worker's stacks are kept; None for a run without a folder."""
    if pulse.worker.folder is None:
        return None
    name = f"step-{pulse.steps_done + 1:09d}-rank-{pulse.worker.rank}.txt"
    return Path(pulse.worker.folder) / STACKS / name


def keep_stacks(pulse: Pulse, stood_s: float, stacks: str) -> Path | None:
    """Adds stacks to the file of the step in hand; None where that can't be."""
    path, worker = stacks_path(pulse), pulse.worker
    if path is None:
        return None
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    said = (
        f"{when}: rank {worker.rank} on {worker.host} (process {worker.pid}), {place_of(pulse)}, "
        f"no sign of life for {stood_s:.3g} s\n\n"
    )
    try:
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(f"{said}{stacks.rstrip()}\n\n")
    except OSError:  # a full disk must not keep anybody from a restart
        return None
    return path
