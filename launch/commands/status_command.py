"""`distrain status`: how a run stands or how it ended."""

import dataclasses
import json
import time
from pathlib import Path
from textwrap import wrap

from distrain.coordinator.run_layout import DONE, RUNNING, STOPPED
from distrain.coordinator.run_status import LOST, RunStatus, read_status
from distrain.coordinator.score_lines import score_lines
from launch.readable import duration

_WIDTH = 78
"""Of a line, in a terminal of 80 columns."""


def show(folder: Path, *, as_json: bool) -> None:
    """Prints a run's status for a person, or as one JSON object for a program.

    Raises:
        UsageError: there is no run in the folder.
    """
    status = read_status(folder)
    if as_json:
        print(json.dumps(dataclasses.asdict(status), indent=2))
    else:
        print("\n".join([f"{folder}: {_headline(status)}", *_details(status)]))


def _headline(status: RunStatus) -> str:
    if status.state == RUNNING:
        return f"running on {status.host}, process {status.pid}{_workers(status)}"
    if status.state == LOST:
        return "lost: its processes have ended without a word"
    how = f"{status.state}: {status.reason}" if status.reason else status.state
    if status.state == STOPPED and status.reason:
        how = status.reason  # "stopped by SIGTERM" says it all
    return f"{how} (exit code {status.exit_code})"


def _workers(status: RunStatus) -> str:
    if status.workers is None:
        return ""
    told = f", {status.workers} worker{'s' * (status.workers != 1)}"
    return f"{told} of {status.workers_range}" if status.workers_range else told


def _details(status: RunStatus) -> list[str]:
    now = f"step {status.step:,} of {status.steps:,}, epoch {status.epoch} of {status.epochs}"
    if status.loss is not None:
        now += f", loss {status.loss:.4f}"
    if status.starts > 1:
        now += f", start {status.starts}"
    lines = [now]
    if status.steps_per_s is not None and status.seconds_left is not None:
        left = duration(status.seconds_left)
        lines.append(f"{status.steps_per_s:,.1f} steps/s, about {left} left")
    lines += score_lines(status.scores)
    if status.checkpoint_step is not None:
        place = f", in {status.checkpoint_store}" if status.checkpoint_store else ""
        lines.append(f"newest checkpoint: step {status.checkpoint_step:,}{place}")
    if status.result is not None:
        lines.append(f"result: {status.result}")
    if status.state not in (RUNNING, DONE):
        lines.append("to go on: the same command again")
    return [f"  {line}" for line in (*lines, *_life(status))]


def _life(status: RunStatus) -> list[str]:
    """What happened to the run, each with its time."""
    lines: list[str] = []
    for at, text in status.life:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
        first = text.partition("\n")[0]
        lines += wrap(first, _WIDTH, initial_indent=f"{when}  ", subsequent_indent=" " * 21)
    return lines
