"""What `distrain launch` takes on its command line."""

import argparse
import sys
from pathlib import Path
from typing import get_args

from distrain.config import Backend
from distrain.errors import UsageError
from launch.commands.worker_options import (
    add_number_options,
    add_output_options,
    fixed_workers_of,
    restarts_of,
)
from launch.failure import Cause
from launch.horovod.host_list import add_host_options, hosts_of
from launch.horovod.hosts import run_on_hosts
from launch.machines.node_range import add_node_options, nodes_of
from launch.script_file import check_script


def add_launch(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.usage = "distrain launch [OPTION ...] SCRIPT [ARGS ...]"
    parser.description = (
        "Runs a Python script that uses distrain.Trainer, once a worker, and exits as it does."
    )
    parser.add_argument("script", type=Path, metavar="SCRIPT", help="a Python file")
    parser.add_argument(
        "rest", nargs=argparse.REMAINDER, metavar="ARGS", help="the script's own, passed on unread"
    )
    parser.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="torch",
        help="what its Trainer is given as well (torch)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be started, and start nothing"
    )
    add_number_options(
        parser,
        "N",
        "how many on this machine (one a GPU, or 1)",
        "how often all start again when one is lost (0)",
    )
    add_node_options(parser)
    add_host_options(parser, backend="--backend horovod")
    add_output_options(
        parser, unless_given="all on a terminal; else it is left as the script writes it"
    )


def run_launch(known: argparse.Namespace) -> Cause | None:
    """Runs a script on workers, or shows what would be started.

    Raises:
        UsageError, ConfigError: it can't be run so; nothing was started.
    """
    from launch.commands import dry_run  # noqa: PLC0415 - what `--help` has no need of
    from launch.commands.job_checks import wanted_workers  # noqa: PLC0415
    from launch.local import GRACE_S, run_workers  # noqa: PLC0415
    from launch.output.logs import Logs  # noqa: PLC0415

    check_script(known.script, "such as examples/digits.py")
    if known.script.suffix == ".toml":
        raise UsageError(f"{known.script} is a job file: `distrain train {known.script}` runs it")
    arguments = ["script", str(known.script), *known.rest]
    workers, restarts = fixed_workers_of(known), restarts_of(known)
    hosts = hosts_of(known, known.backend)
    logs = Logs.of_script(known.logs, known.log_dir, on_terminal=sys.stdout.isatty())
    if hosts is not None and known.dry_run:
        dry_run.of_script_on_hosts(arguments, hosts, restarts or 0, logs)
        return None
    if hosts is not None:
        return run_on_hosts(
            arguments, hosts, Path.cwd(), max_restarts=restarts or 0, grace_s=GRACE_S, logs=logs
        )
    nodes = nodes_of(known)
    if known.dry_run:
        dry_run.of_script(arguments, workers, restarts, known.backend, nodes, logs)
        return None
    return run_workers(
        arguments,
        wanted_workers(workers),
        max_restarts=restarts,
        backend=known.backend,
        nodes=nodes,
        logs=logs,
    )
