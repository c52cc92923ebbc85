"""What `distrain plan` takes on its command line."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from distrain.errors import UsageError
from launch.commands.worker_options import fixed_workers_of
from launch.failure import Cause


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.usage = "distrain plan JOB [OPTION ...]\n           [--section.field VALUE ...]"
    parser.description = (
        "Says what a job is made of, which numbers of workers are worth having, and what it will "
        "take on this machine in time and memory. Nothing is written."
    )
    parser.epilog = (
        "--section.field VALUE sets any field of the job; `distrain train JOB --help` lists them."
    )
    parser.add_argument(
        "job", type=Path, metavar="JOB", help="a job file, such as examples/digits.toml"
    )
    parser.add_argument("--workers", metavar="N", help="measured with so many (one a GPU, or 1)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        metavar="S",
        help="try the job's first steps for about so long; 0: nothing is tried (3)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for a program")


def run_plan(known: argparse.Namespace, overrides: Sequence[str]) -> Cause | None:
    """Says what a job will take.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run.
    """
    from launch.commands import plan_command  # noqa: PLC0415 - what `--help` has no need of

    if not 0 <= known.seconds < math.inf:
        raise UsageError(f"--seconds is {known.seconds}; give 0 or more")
    return plan_command.plan(
        known.job,
        fixed_workers_of(known),
        overrides,
        seconds=known.seconds,
        as_json=known.json,
    )
