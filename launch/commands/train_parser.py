"""What `distrain train` takes on its command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distrain.errors import UsageError
from launch.commands.worker_options import (
    add_number_options,
    add_output_options,
    restarts_of,
    workers_of,
)
from launch.failure import Cause
from launch.horovod.host_list import add_host_options, hosts_of
from launch.machines.node_range import add_node_options, nodes_of


class _Help(argparse.Action):
    """Shows the help; that of a job's fields comes after it, where a job stands before it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any
    ) -> None:
        parser.print_help()
        if namespace.job is None:
            parser.exit()
        print()
        namespace.help = True


def add_train(parser: argparse.ArgumentParser) -> None:
    """Adds the options, to a parser that has no `--help` of its own."""
    parser.usage = "distrain train JOB [OPTION ...]\n           [--section.field VALUE ...]"
    parser.description = (
        "Trains as a TOML job file says, on the workers of this machine, or of several."
    )
    parser.epilog = (
        "--section.field VALUE sets any field of the job, such as --optimizer.lr 0.05; "
        "`distrain train JOB --help` lists them all."
    )
    parser.add_argument(
        "job", type=Path, metavar="JOB", help="a job file, such as examples/digits.toml"
    )
    parser.add_argument(
        *("-h", "--help"), nargs=0, action=_Help, default=False, help="show this, and JOB's fields"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be started, with the job as resolved, and start nothing",
    )
    parser.add_argument(
        "--fresh", action="store_true", help="move a run that stands in the run's folder aside"
    )
    add_number_options(
        parser,
        "N|MIN:MAX",
        "how many on this machine (one a GPU, or 1). MIN:MAX starts MAX; goes on with fewer "
        "where one is lost again and again, and with as many as `distrain resize` says",
        "how often all start again when one is lost, from the newest state (10; with one worker 0)",
    )
    add_node_options(parser)
    add_host_options(parser, backend="--parallel.backend horovod")
    add_output_options(parser, unless_given="rank0, and files in the run's folder")


def run_train(known: argparse.Namespace, overrides: Sequence[str]) -> Cause | None:
    """Trains, or shows what would be started.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run; nothing was started.
    """
    from launch.commands import dry_run, train_command  # noqa: PLC0415 - what `--help` has no need of

    if known.job.suffix == ".py":
        raise UsageError(f"{known.job} is a script: `distrain launch {known.job}` runs it")
    asked = train_command.Asked(
        job=known.job,
        overrides=["--help"] if known.help else overrides,
        workers=workers_of(known),
        max_restarts=restarts_of(known),
        fresh=known.fresh,
        nodes=nodes_of(known),
        shown=known.logs,
        log_dir=known.log_dir,
    )
    hosts = hosts_of(known)
    if hosts is not None and known.dry_run:
        dry_run.of_job_on_hosts(asked, hosts)
        return None
    if hosts is not None:
        return train_command.train_on_hosts(asked, hosts)
    if known.dry_run:
        dry_run.of_job(asked)
        return None
    return train_command.train(asked)
