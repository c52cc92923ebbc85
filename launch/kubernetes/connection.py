"""The options that name a cluster and how a job there is followed; the way to a `Cluster`."""

import argparse
import logging
import math
from typing import TYPE_CHECKING, Literal, get_args

from distrain.errors import ConfigError, UsageError
from launch.job_spec import check_namespace

if TYPE_CHECKING:
    from launch.kubernetes.cluster import Cluster

NodeLogs = Literal["rank0", "all", "failed"]
"""Of which nodes the logs are shown when a job is followed."""

LOST_AFTER_S = 300.0
"""Seconds without an answer after which the cluster counts as lost."""


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name a cluster, called as `kubectl` calls them."""
    add = parser.add_argument_group("which cluster").add_argument
    add("--kubeconfig", metavar="FILE", help="its file ($KUBECONFIG, else ~/.kube/config)")
    add("--context", metavar="NAME", help="of the kubeconfig (its current one)")
    add("--namespace", "-n", metavar="NAME", help="where in it (the context's)")


def add_following(parser: argparse.ArgumentParser) -> None:
    """Adds how a job is followed."""
    following = parser.add_argument_group("following it")
    following.add_argument(
        "--logs",
        choices=get_args(NodeLogs),
        default="rank0",
        help="show those of the first node, of all, or the end of those that fail (rank0)",
    )
    following.add_argument(
        "--lost-after",
        type=float,
        default=LOST_AFTER_S,
        metavar="S",
        help=f"give up when the cluster has not answered for so long ({LOST_AFTER_S:g})",
    )


def check_following(known: argparse.Namespace) -> None:
    """Checks what `add_following` takes.

    Raises:
        UsageError: a number is out of its range.
    """
    if not 0 <= known.lost_after < math.inf:
        raise UsageError(f"--lost-after is {known.lost_after:g}; give 0 or more")


def connect(known: argparse.Namespace) -> "Cluster":
    """The cluster that the options of `add_connection` name. Nothing is asked of it yet.

    Raises:
        ConfigError: there is no such file or context, or the `kubernetes` package is missing.
        UsageError: no namespace can be called so.
    """
    if known.namespace is not None:
        check_namespace("--namespace", known.namespace)
    try:
        from launch.kubernetes.kubeconfig import cluster_of  # noqa: PLC0415 - needs the package
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("kubernetes", "urllib3", "yaml"):
            raise
        raise ConfigError(
            "to ask a cluster, the kubernetes package is needed: pip install 'distrain[kubernetes]'"
        ) from error
    # That a request is sent again is no business of the user's until it has failed for good.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    return cluster_of(known.kubeconfig, known.context, known.namespace)
