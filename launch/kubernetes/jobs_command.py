"""`distrain kubernetes`: the status of submitted jobs, their end awaited, or brought about."""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from datetime import datetime
from textwrap import wrap

from distrain.errors import ExitCode
from launch.failure import Cause
from launch.kubernetes.cancellation import cancel
from launch.kubernetes.cluster import Cluster, Object
from launch.kubernetes.cluster_errors import ClusterError
from launch.kubernetes.follow import follow
from launch.kubernetes.job_status import JobStatus, Node, ended_text, job_status
from launch.kubernetes.kinds import EVENT, POD, SELECTOR, selector_of
from launch.kubernetes.labels import JOB
from launch.kubernetes.lookup import all_jobs, find_job, inner_job
from launch.kubernetes.tidings import title, why_no_pods
from launch.readable import duration

_WIDTH = 78
"""Of a line, in a terminal of 80 columns."""


def run(known: argparse.Namespace, cluster: Cluster) -> Cause | None:
    """Runs an action of `distrain kubernetes`; see `run_jobs`."""
    if known.action == "follow":
        return follow(cluster, known.name, logs=known.logs, lost_after_s=known.lost_after)
    if known.action == "cancel":
        try:
            was_there = cancel(cluster, known.name, timeout_s=known.timeout)
        except KeyboardInterrupt:
            return Cause(
                0,
                ExitCode.CTRL_C,
                f"no longer waiting; the job {known.name} is being removed, and what its pods need "
                f"to save is left. To remove that too: {cluster.command('cancel', known.name)}",
            )
        where = f"namespace {cluster.namespace}"
        if not was_there:
            print(f"there is no job {known.name} in {where}: nothing to remove")
        elif known.timeout:
            print(f"the job {known.name} is removed from {where}; what it has saved is there")
        else:
            print(f"the job {known.name} in {where} is asked to end, and will be removed")
        return None
    if known.name is None:
        _tell_all(_statuses(cluster), cluster.namespace, as_json=known.json)
        return None
    status = _status(cluster, known.name)
    if known.json:
        print(json.dumps(dataclasses.asdict(status), indent=2))
    else:
        print("\n".join(status_lines(status, time.time())))
    return None


def _status(cluster: Cluster, name: str) -> JobStatus:
    _, top = find_job(cluster, name)
    pods = cluster.listed(POD, (("labelSelector", selector_of(name)),))["items"]
    status = job_status(top, pods)
    if status.state == "failed":
        return job_status(top, pods, inner_job(cluster, top))
    if status.missing and status.reason is None:
        return dataclasses.replace(status, reason=_why_no_pods(cluster, top))
    return status


def _why_no_pods(cluster: Cluster, top: Object) -> str | None:
    try:
        warnings = cluster.listed(EVENT, (("fieldSelector", "type=Warning"),))["items"]
    except ClusterError as error:
        if error.status == 403:
            return f"why pods are missing stands in events: {error}"
        raise
    return why_no_pods(warnings, top)


def _statuses(cluster: Cluster) -> list[JobStatus]:
    pods = cluster.listed(POD, (("labelSelector", SELECTOR),))["items"]
    by_job: dict[str, list[Object]] = {}
    for pod in pods:
        by_job.setdefault(pod["metadata"]["labels"].get(JOB, ""), []).append(pod)
    return [job_status(top, by_job.get(top["metadata"]["name"], ())) for top in all_jobs(cluster)]


def _tell_all(statuses: Sequence[JobStatus], namespace: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(status) for status in statuses], indent=2))
    elif statuses:
        print("\n".join(overview(statuses, time.time())))
    else:
        print(f"there is no job in namespace {namespace}")


def overview(statuses: Sequence[JobStatus], now: float) -> list[str]:
    """Several jobs for a person, a line each; `now` in seconds since 1970."""
    rows = [("NAME", "STATE", "NODES", "AGE")]
    for status in statuses:
        running = sum(node.phase == "Running" for node in status.nodes)
        nodes = f"{running}/{len(status.nodes) + status.missing}"
        rows.append((status.name, status.state, nodes, _age(status, now)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def status_lines(status: JobStatus, now: float) -> list[str]:
    """A job's status for a person; `now` in seconds since 1970."""
    how = f", {ended_text(status.exit_code)}" if status.exit_code else ""
    lines = [f"{status.name} in namespace {status.namespace}: {status.state}{how}"]
    rows = [f"{status.form}, made {_age(status, now)} ago"]
    if status.reason:
        rows += wrap(" ".join(status.reason.split()), _WIDTH - 2)
    for node in status.nodes:
        rows += _node_rows(node)
    if status.missing:
        nodes = "1 node has" if status.missing == 1 else f"{status.missing} nodes have"
        rows.append(f"{nodes} no pod")
    if status.replaced:
        rows.append(f"and {status.replaced} pod{'s' * (status.replaced != 1)} that failed before")
    return [*lines, *(f"  {row}" for row in rows)]


def _age(status: JobStatus, now: float) -> str:
    return duration(max(0.0, now - datetime.fromisoformat(status.created).timestamp()))


def _node_rows(node: Node) -> list[str]:
    place = f"on {node.machine}" if node.machine else "on no machine yet"
    row = f"{title(node)}: {node.phase.lower()} {place}, pod {node.pod}"
    if node.exit_code is not None:
        row += f", {ended_text(node.exit_code)}"
    if node.reason:
        row += f"; {' '.join(node.reason.split())}"
    return wrap(row, _WIDTH - 2, subsequent_indent="  ", break_on_hyphens=False)
