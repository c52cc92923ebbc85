"""Options of the commands that start workers: how many, how often again, and what they write."""

import argparse
from pathlib import Path

from distrain.errors import UsageError
from launch.number_range import NumberRange
from launch.output.output_pipes import CHOICES


def add_number_options(
    parser: argparse.ArgumentParser, form: str, workers_help: str, restarts_help: str
) -> None:
    """Adds how many workers there are, in that form, and how often they start again."""
    workers = parser.add_argument_group("workers")
    workers.add_argument("--workers", metavar=form, help=workers_help)
    workers.add_argument("--max-restarts", type=int, metavar="N", help=restarts_help)


def add_output_options(parser: argparse.ArgumentParser, *, unless_given: str) -> None:
    """Adds what becomes of the workers' output; `unless_given` says so where nothing is asked."""
    output = parser.add_argument_group("what workers write")
    output.add_argument(
        "--logs",
        choices=CHOICES,
        help="show every worker's, each line with its rank; rank 0's alone; or the last lines of a "
        f"worker that fails ({unless_given})",
    )
    output.add_argument(
        "--log-dir",
        type=Path,
        metavar="DIR",
        help="keep it there, a file for each worker and start",
    )


def workers_of(known: argparse.Namespace) -> NumberRange | None:
    """What `--workers` gives; None where it doesn't.

    Raises:
        UsageError: it is no number, and no MIN:MAX.
    """
    return None if known.workers is None else NumberRange.parse("--workers", known.workers)


def fixed_workers_of(known: argparse.Namespace) -> NumberRange | None:
    """The same, of a command whose workers don't grow and shrink.

    Raises:
        UsageError: it is no number.
    """
    workers = workers_of(known)
    if workers is not None and workers.is_elastic:
        raise UsageError(
            f"--workers is {known.workers}; MIN:MAX is for `distrain train`, give one number"
        )
    return workers


def restarts_of(known: argparse.Namespace) -> int | None:
    """What `--max-restarts` gives; None where it doesn't.

    Raises:
        UsageError: it is below 0.
    """
    given: int | None = known.max_restarts
    if given is not None and given < 0:
        raise UsageError(f"--max-restarts is {given}; give 0 or more")
    return given
