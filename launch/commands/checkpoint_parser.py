"""What `distrain checkpoint` takes on its command line."""

import argparse
from pathlib import Path

from distrain.errors import UsageError


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `distrain checkpoint`."""
    parser.description = "What a run has saved. Its folder is only read, also while it goes on."
    actions = parser.add_subparsers(dest="action", required=True)

    found = actions.add_parser("list", help="what checkpoints there are, and what keeps them")
    found.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    found.add_argument("--json", action="store_true", help="one JSON object, for a program")

    verify = actions.add_parser(
        "verify",
        help="compare every byte with its SHA-256",
        description="Reads every byte of a run's checkpoints, and names what is not as it was "
        "written. Nothing is changed. Exits with 65 where one is damaged.",
    )
    verify.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    verify.add_argument("--step", type=int, metavar="S", help="of this step alone (all)")
    _add_export(actions.add_parser("export", help="write the model's weights to a file of its own"))


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.usage = "distrain checkpoint export RUN OUT [OPTION ...]"
    parser.description = (
        "Writes the weights of a checkpoint that verifies to OUT, a file that plain torch and "
        "safetensors can load, and beside it a short program that does so; or an ONNX file. "
        "Nothing is written over."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="NAME.safetensors, or NAME.onnx with --format onnx"
    )
    parser.add_argument("--step", type=int, metavar="S", help="of this step (the newest)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--best", action="store_true", help="the best epoch's weights, not the newest"
    )
    which.add_argument(
        "--average", action="store_true", help="the average of the weights, where the run has one"
    )
    parser.add_argument(
        "--format",
        choices=("safetensors", "onnx"),
        default="safetensors",
        help="of OUT (safetensors)",
    )
    parser.add_argument(
        "--job",
        type=Path,
        metavar="JOB",
        help="the run's job file, for ONNX of a model that a function of your own builds: only "
        "there its code is imported",
    )


def run_checkpoint(known: argparse.Namespace) -> None:
    """Runs an action of `distrain checkpoint`.

    Raises:
        UsageError: there is no such run or checkpoint, or OUT is there already.
        DataError: a checkpoint is damaged.
    """
    if known.action == "list":
        from launch.commands import checkpoint_list  # noqa: PLC0415 - for this command alone

        checkpoint_list.show(known.run, as_json=known.json)
        return
    from launch.commands import checkpoint_commands  # noqa: PLC0415 - it imports torch

    if known.step is not None and known.step < 0:
        raise UsageError(f"--step is {known.step}; give the step of a checkpoint")
    if known.action == "verify":
        checkpoint_commands.verify(known.run, known.step)
        return
    checkpoint_commands.export(
        known.run,
        known.out,
        step=known.step,
        which="best" if known.best else "average" if known.average else "model",
        as_onnx=known.format == "onnx",
        job_file=known.job,
    )
