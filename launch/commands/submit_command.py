"""`distrain submit`: a job to a cluster."""

import argparse
from collections.abc import Sequence

from launch.failure import Cause
from launch.kubernetes.parser import add_kubernetes
from launch.slurm.parser import add_slurm


def add_submit(parser: argparse.ArgumentParser) -> None:
    """Adds the targets."""
    parser.description = "Checks a job, and hands it to a cluster."
    targets = parser.add_subparsers(dest="target", required=True)
    add_kubernetes(targets.add_parser("kubernetes", help="a Job, a JobSet or a TrainJob"))
    add_slurm(targets.add_parser("slurm", help="a batch job, or one for each of several seeds"))


def submit(
    known: argparse.Namespace, overrides: Sequence[str], script: Sequence[str]
) -> Cause | None:
    """Submits a job; the cause says why it has failed, where it was followed to its end.

    Args:
        known: What `add_submit` takes.
        overrides: The job file's, `--section.field VALUE`.
        script: A script's own arguments.

    Raises:
        UsageError, ConfigError: it can't be run as described.
        LostPeerError: the cluster does not answer.
    """
    if known.target == "slurm":
        from launch.slurm import command as slurm  # noqa: PLC0415 - what `--help` has no need of

        return slurm.run(known, overrides, script)
    from launch.kubernetes import command as kubernetes  # noqa: PLC0415 - as above

    return kubernetes.run(known, overrides, script)
