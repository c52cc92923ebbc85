"""What `distrain status` and `distrain resize` take: the folder of a run, as it stands."""

import argparse
from pathlib import Path


def add_status(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.description = (
        "Tells how far a run is, or how it ended, its scores, what it has saved, and the last ten "
        "things that happened to it. The folder is only read."
    )
    _add_run(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, for a program")


def run_status(known: argparse.Namespace) -> None:
    """Tells it.

    Raises:
        UsageError: there is no run in the folder.
    """
    from launch.commands.status_command import show  # noqa: PLC0415 - for this command alone

    show(known.run, as_json=known.json)


def add_resize(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.description = (
        "Has the workers of a run that was started with --workers MIN:MAX, on this machine, save, "
        "and N of them go on from there. No step is lost, and the weights are the same bits."
    )
    _add_run(parser)
    parser.add_argument("workers", type=int, metavar="N", help="how many, from MIN to MAX")


def run_resize(known: argparse.Namespace) -> None:
    """Asks the run's launcher for it, and says what becomes of it.

    Raises:
        UsageError: the run can't have so many workers, or does not go on.
        StorageError: its folder can't be written.
    """
    from launch.resizing import resize  # noqa: PLC0415 - for this command alone

    print(resize(known.run, known.workers))


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
