"""What `distrain kubernetes` takes on its command line: a job that has been submitted."""

import argparse
import math
from contextlib import closing

from distrain.errors import UsageError
from launch.failure import Cause
from launch.job_spec import check_name
from launch.kubernetes.connection import (
    add_connection,
    add_following,
    check_following,
    connect,
)

_GONE_WITHIN_S = 300.0


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds the actions of `distrain kubernetes`."""
    parser.description = "Jobs that `distrain submit kubernetes` has sent."
    actions = parser.add_subparsers(dest="action", required=True)

    status = actions.add_parser(
        "status", help="tell how a job stands, node by node; without a name, all jobs, a line each"
    )
    status.add_argument("--json", action="store_true", help="as JSON, for a program")

    follow = actions.add_parser(
        "follow",
        usage="distrain kubernetes follow NAME [OPTION ...]",
        help="show a job's logs and what happens to it, to its end",
        description="Logs go to the standard output, what the cluster says to the standard error. "
        "Ctrl-C ends this alone, not the job. Exits as the job does: 0 done; 64, 65, 70, 74 or 78 "
        "as its node did; 75 suspended or removed; 69 a node or the cluster was lost.",
    )
    add_following(follow)

    cancel = actions.add_parser(
        "cancel",
        help="end a job, and remove all that was made for it",
        description="Its pods get the time to save that they have, so that the same job can go on "
        "from there. A job that is not there is no error.",
    )
    cancel.add_argument(
        "--timeout",
        type=float,
        default=_GONE_WITHIN_S,
        metavar="S",
        help=f"wait so long until it is gone; 0: not at all ({_GONE_WITHIN_S:g})",
    )
    for action in (status, follow, cancel):
        number = "?" if action is status else None
        action.add_argument("name", nargs=number, metavar="NAME", help="the job's")
        add_connection(action)


def run_jobs(known: argparse.Namespace) -> Cause | None:
    """Runs an action of `distrain kubernetes`.

    Returns:
        How the job that was followed has failed.

    Raises:
        UsageError: there is no such job.
        ConfigError: no cluster is known.
        ClusterError: the cluster refuses, or can't be reached.
    """
    if known.name is not None:
        check_name("NAME", known.name)
    if known.action == "follow":
        check_following(known)
    if known.action == "cancel" and not 0 <= known.timeout < math.inf:
        raise UsageError(f"--timeout is {known.timeout:g}; give 0 or more")
    with closing(connect(known)) as cluster:
        from launch.kubernetes import jobs_command  # noqa: PLC0415 - needs what `connect` finds

        return jobs_command.run(known, cluster)
