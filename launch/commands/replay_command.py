"""`distrain replay`: a step of a run once more, on this device, held against the record."""

import argparse
import dataclasses
import json
import runpy
import sys
from bdb import BdbQuit
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distrain.config import Job
from distrain.coordinator.run_layout import JOB
from distrain.errors import ConfigError, ExitCode, UsageError
from distrain.job_file import describes_a_model, override, read_job
from launch.commands.replay_text import difference_text, replayed_lines
from launch.failure import Cause
from launch.script_file import check_script

if TYPE_CHECKING:
    from distrain.practice.replayed import Replayed


def add_replay(parser: argparse.ArgumentParser) -> None:
    """Adds what `distrain replay` takes."""
    parser.description = (
        "Walks from the newest checkpoint before a step to that step, on one device whatever the "
        "number of workers was, shows what the step does, and holds its loss and gradient norm "
        "against the recorded ones, bit for bit: exit code 0 if they are the same, else 70. A step "
        "that failed fails again: of a NaN the first layer is named. The run's folder is only read."
    )
    parser.usage = "distrain replay RUN [OPTION ...] [-- SCRIPT ARGS ...]"
    parser.epilog = (
        "--section.field VALUE sets a field of the job that is no part of its result, such as "
        "--data.path. A run of a script is replayed by it: distrain replay RUN --step S -- SCRIPT "
        "ARGS."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "--step", type=int, metavar="S", help="counted from 1, as in the log (the one that failed)"
    )
    parser.add_argument(
        "--micro-batch",
        type=int,
        metavar="J",
        help="look at this micro-batch, counted from 0: what each layer gives, its gradients, all "
        "of its samples",
    )
    parser.add_argument(
        "--debugger",
        action="store_true",
        help="open pdb before that micro-batch (0), or where the step fails",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for a program")


def replay(
    known: argparse.Namespace, overrides: Sequence[str], script: Sequence[str]
) -> Cause | None:
    """Replays a step; the cause says what is not as it was recorded.

    Args:
        known: What `add_replay` takes.
        overrides: `--section.field VALUE`, of a job.
        script: SCRIPT ARGS where it was a script's run.

    Raises:
        UsageError, ConfigError, DataError: it can't be replayed.
    """
    if known.json and known.debugger:
        raise UsageError("--json and --debugger don't go together: both want the output")
    if not (known.run / JOB).is_file():
        raise UsageError(
            f"there is no run in {known.run}: it has no {JOB}; name a folder such as runs/digits"
        )
    if script and overrides:
        raise UsageError(
            f"unrecognized arguments: {' '.join(overrides)}; what a script is given "
            "stands behind it"
        )
    start = _script_of(script) if script else _job_of(known.run, overrides)
    try:
        replayed = _replayed(known, start)
    except BdbQuit:
        print("left in the debugger: nothing is compared")
        return None
    if known.json:
        print(json.dumps(dataclasses.asdict(replayed), indent=2))
    else:
        print("\n".join(replayed_lines(replayed)))
    if replayed.is_equal is False:
        return Cause(0, ExitCode.FAULT, difference_text(replayed))
    return None


def _replayed(known: argparse.Namespace, start: Callable[[], Any]) -> "Replayed":
    from distrain.practice.replay import (  # noqa: PLC0415 - it takes torch
        ReplayedError,
        Request,
        replaying,
    )

    request = Request(
        folder=known.run,
        step=known.step,
        micro_batch=known.micro_batch,
        debugger=known.debugger,
        tell=(lambda _: None) if known.json else lambda text: print(text, flush=True),
    )
    with ExitStack() as stack:
        if known.json:
            stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(replaying(request))
        try:
            start()
        except ReplayedError as done:
            return done.replayed
        except SystemExit as left:
            raise UsageError(
                f"the script has ended by itself, with {left.code or 0}, before it came to a "
                f"Trainer.fit whose run is {known.run}"
            ) from left
    raise UsageError(
        f"the script has come to no Trainer.fit whose run is {known.run}: start it where it was "
        "started, with the same arguments"
    )


def _job_of(folder: Path, overrides: Sequence[str]) -> Callable[[], Any]:
    if not describes_a_model(folder / JOB):
        raise ConfigError(
            f"{folder / JOB} doesn't say what the run is made of: a script has made it. Replay it "
            f"by the script, as it was started: distrain replay {folder} --step S -- SCRIPT ARGS"
        )
    job = override(read_job(folder / JOB), overrides, prog=f"distrain replay {folder}")
    job = _alone(job, folder)

    def start() -> None:
        from distrain.run_job import run_job  # noqa: PLC0415 - it takes torch

        # A model named as PACKAGE.MODULE:FUNCTION is looked for where the job was started.
        sys.path.insert(0, str(Path.cwd()))
        run_job(job)

    return start


def _alone(job: Job, folder: Path) -> Job:
    """The job on one worker, in this folder; what carries the exchanges is no part of a result."""
    run = dataclasses.replace(job.run, dir=str(folder), max_time_s=None)
    parallel = dataclasses.replace(job.parallel, backend="torch")
    return dataclasses.replace(job, run=run, parallel=parallel)


def _script_of(script: Sequence[str]) -> Callable[[], Any]:
    path = Path(script[0])
    check_script(path, "as the run was started by")

    def start() -> None:
        sys.argv = list(script)
        sys.path.insert(0, str(path.resolve().parent))
        runpy.run_path(str(path), run_name="__main__")

    return start
