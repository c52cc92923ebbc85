"""What `distrain submit slurm` takes on its command line."""

import argparse
from pathlib import Path

from launch.commands.submit_parser import add_shared


def add_slurm(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `distrain submit slurm`."""
    parser.description = (
        "Runs a job on SLURM, by a batch script that saves when it is preempted or out of time and "
        "requeues itself. docs/slurm.md says what the cluster needs, and what becomes of a job."
    )
    groups = add_shared(parser, "slurm")
    groups.restarts.add_argument(
        "--node-retries",
        type=int,
        default=10,
        metavar="N",
        help="how often a job that was lost goes back into the queue (10)",
    )
    add = parser.add_argument_group("as sbatch has them").add_argument
    add("--partition", metavar="NAME", help="one, or several by commas (the cluster's)")
    add("--account", metavar="NAME", help="who pays")
    add("--qos", metavar="NAME", help="quality of service")
    add("--time", metavar="LIMIT", help="of each start, such as 8:00:00 (the partition's)")
    add("--constraint", metavar="FEATURES", help="what the nodes must have")
    add("--output", metavar="FILE", help="the log (NAME-%%j.log, %%j being the job's number)")
    add(
        "--seeds",
        metavar="A-B,...",
        help="one run each, at once (0-9%%2: two at a time), in run.dir/seed-N: a job array",
    )
    for command in ("sbatch", "srun"):
        add(
            f"--{command}",
            action="append",
            default=[],
            metavar="NAME[=VALUE]",
            help=f"any other setting of {command}; may be given again",
        )
    add(
        "--setup",
        type=Path,
        metavar="FILE",
        help="shell lines to run before, such as module load and source venv/bin/activate",
    )
