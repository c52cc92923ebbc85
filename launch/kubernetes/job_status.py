"""How a job stands, from what the cluster says of it: pure, from API objects to plain values.

A job is one object of kind Job, JobSet or TrainJob; its nodes are pods, each with a number, of
which a later one may replace an earlier.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distrain.errors import FATAL, ExitCode
from launch.kubernetes.kinds import NODE_LABEL

Object = Mapping[str, Any]
State = Literal["suspended", "waiting", "running", "ending", "done", "failed"]

_DONE = ("Complete", "Completed")
_CODE_IN_TEXT = re.compile(r"failed with exit code (\d+)")
_MEANING = {
    ExitCode.USAGE: "wrong usage",
    ExitCode.DATA: "bad data",
    ExitCode.WORKER_LOST: "a worker or the network was lost",
    ExitCode.FAULT: "a fault in the program or model",
    ExitCode.STORAGE: "storage failed",
    ExitCode.STOPPED: "interrupted, with everything saved",
    ExitCode.CONFIG: "bad config",
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A pod of a job.

    Attributes:
        number: The node's; None where the pod carries none.
        pod: The pod's name.
        phase: The pod's: Pending, Running, Succeeded, Failed or Unknown; or Terminating.
        machine: Where it runs.
        reason: Why it waits or has failed, in the cluster's words.
        exit_code: Of its container, once that has ended; above 128 for a signal.
        disrupted: Whether the cluster has ended it for reasons of its own: preempted, evicted.
        created: When, in RFC 3339.
        ended: When its container has ended, likewise.
    """

    number: int | None
    pod: str
    phase: str
    machine: str | None
    reason: str | None
    exit_code: int | None
    disrupted: bool
    created: str
    ended: str | None


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """A job as a whole.

    Attributes:
        name: Of it.
        namespace: There.
        form: Job, JobSet or TrainJob.
        state: How it stands.
        reason: Why, in the cluster's words.
        exit_code: What its end stands for (`distrain.errors.ExitCode`); None while it goes on.
        nodes: The newest pod of each number, in order.
        replaced: How many pods others have taken the place of, and are still there to be seen.
        missing: How many nodes have no pod, while the job goes on.
        created: When, in RFC 3339.
    """

    name: str
    namespace: str
    form: str
    state: State
    reason: str | None
    exit_code: int | None
    nodes: tuple[Node, ...]
    replaced: int
    missing: int
    created: str


def job_status(top: Object, pods: Iterable[Object], inner: Object | None = None) -> JobStatus:
    """How a job stands.

    Args:
        top: Its Job, JobSet or TrainJob.
        pods: All of its pods, in any order.
        inner: The Job within a set, which knows why it failed; of the set's own end there is only
            to be learnt that a Job of it did.
    """
    seen = [node_of(pod) for pod in pods if belongs(pod, top)]
    nodes = newest(seen)
    state, reason = _state(top, nodes)
    if state == "failed" and inner is not None:
        inner_state, inner_reason = _state(inner, nodes)
        reason = inner_reason if inner_state == "failed" else reason
    return JobStatus(
        name=top["metadata"]["name"],
        namespace=top["metadata"].get("namespace", ""),
        form=top["kind"],
        state=state,
        reason=reason,
        exit_code=exit_code(state, reason, seen),
        nodes=nodes,
        replaced=len(seen) - len(nodes),
        missing=max(0, _num_nodes(top) - len(nodes)) if state in ("waiting", "running") else 0,
        created=top["metadata"].get("creationTimestamp", ""),
    )


def node_of(pod: Object) -> Node:
    """What a pod says of its node."""
    metadata, status = pod["metadata"], pod.get("status", {})
    number = {**metadata.get("annotations", {}), **metadata.get("labels", {})}.get(NODE_LABEL)
    conditions = {each["type"]: each for each in status.get("conditions", ())}
    disrupted = conditions.get("DisruptionTarget", {}).get("status") == "True"
    container = _container(pod)
    terminated = container.get("terminated", {})
    phase = status.get("phase", "Unknown")
    if "deletionTimestamp" in metadata and phase in ("Pending", "Running"):
        phase = "Terminating"
    return Node(
        number=int(number) if number is not None and number.isdecimal() else None,
        pod=metadata["name"],
        phase=phase,
        machine=pod.get("spec", {}).get("nodeName"),
        reason=_why(status, conditions, container),
        exit_code=terminated.get("exitCode"),
        disrupted=disrupted,
        created=metadata.get("creationTimestamp", ""),
        ended=terminated.get("finishedAt"),
    )


def newest(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """The newest pod of each number, in order; then those without one."""
    found: dict[tuple[bool, int | str], Node] = {}
    for node in sorted(nodes, key=lambda node: (node.created, node.ended is None)):
        key = (True, node.pod) if node.number is None else (False, node.number)
        found[key] = node
    return tuple(found[key] for key in sorted(found, key=lambda key: (key[0], key[1])))


def exit_code(state: State, reason: str | None, nodes: Sequence[Node]) -> int | None:
    """What a job's end stands for; None while it goes on.

    Of several nodes that failed, the others mostly fail for want of the first: so what the cluster
    names as the reason counts, then a failure that another start would not mend, then the last.
    """
    if state != "failed":
        return ExitCode.DONE if state == "done" else None
    named = _CODE_IN_TEXT.search(reason or "")
    failed = sorted((node for node in nodes if node.exit_code), key=lambda node: node.ended or "")
    codes = [node.exit_code or 0 for node in failed if not node.disrupted]
    fatal = [code for code in codes if code in FATAL]
    if named or fatal:
        return own_code(int(named[1])) if named else fatal[0]
    if (reason or "").startswith("DeadlineExceeded"):
        return ExitCode.STOPPED
    if codes:
        return own_code(codes[-1])
    lost = any(node.disrupted or node.phase == "Failed" for node in nodes)
    return ExitCode.WORKER_LOST if lost else ExitCode.FAULT


def own_code(code: int) -> int:
    """A container's exit code as one of ours: a signal is a lost worker, what else a fault."""
    if code in set(ExitCode):
        return code
    return ExitCode.WORKER_LOST if code > 128 else ExitCode.FAULT


def ended_text(code: int) -> str:
    """What a container's exit code says, for a person."""
    if code in _MEANING:
        return f"exit code {code}: {_MEANING[ExitCode(code)]}"
    return f"exit code {code}: ended by signal {code - 128}" if code > 128 else f"exit code {code}"


def belongs(pod: Object, top: Object) -> bool:
    """Whether a pod is of this job; an earlier one of its name may have left some."""
    made = top["metadata"].get("creationTimestamp", "")
    return bool(pod["metadata"].get("creationTimestamp", made) >= made)


def children(top: Object) -> set[tuple[str, str]]:
    """Kind and name of a job's object and of those between it and its pods."""
    kind, name = top["kind"], top["metadata"]["name"]
    found = {(kind, name)}
    if kind == "TrainJob":
        # It makes a JobSet of its own name; Trainer's rule is that the workers' part is `node`.
        found |= {("JobSet", name), ("Job", f"{name}-node-0")}
    for replicated in top["spec"].get("replicatedJobs", ()) if kind == "JobSet" else ():
        for at in range(replicated.get("replicas", 1)):
            found.add(("Job", f"{name}-{replicated['name']}-{at}"))
    return found


def _num_nodes(top: Object) -> int:
    """How many pods a job asks for."""
    spec = top.get("spec", {})
    if top["kind"] == "TrainJob":
        return int(spec.get("trainer", {}).get("numNodes", 0))
    if top["kind"] == "Job":
        return int(spec.get("completions", 0))
    jobs = [(each.get("replicas", 1), each.get("template", {})) for each in spec["replicatedJobs"]]
    return sum(times * job.get("spec", {}).get("completions", 0) for times, job in jobs)


def _state(top: Object, nodes: Sequence[Node]) -> tuple[State, str | None]:
    for condition in top.get("status", {}).get("conditions", ()):
        if condition["status"] == "True" and condition["type"] in (*_DONE, "Failed"):
            return ("done" if condition["type"] in _DONE else "failed"), _text(condition)
    if "deletionTimestamp" in top["metadata"]:
        return "ending", "it is being removed"
    if top.get("spec", {}).get("suspend"):
        return "suspended", "a queue such as Kueue, or a person, has to let it start"
    if any(node.phase == "Running" for node in nodes):
        return "running", None
    return "waiting", next((node.reason for node in nodes if node.reason), None)


def _container(pod: Object) -> Mapping[str, Any]:
    """The state of the node's container, which is the first one."""
    containers = pod.get("spec", {}).get("containers", ())
    first = containers[0]["name"] if containers else None
    for status in pod.get("status", {}).get("containerStatuses", ()):
        if status["name"] == first or first is None:
            found: Mapping[str, Any] = status.get("state", {})
            return found
    return {}


def _why(
    status: Object, conditions: Mapping[str, Object], container: Mapping[str, Any]
) -> str | None:
    """Why a pod waits or has failed: the cluster's reasons first, then the container's."""
    if status.get("reason"):
        return _text(status)
    if conditions.get("DisruptionTarget", {}).get("status") == "True":
        return _text(conditions["DisruptionTarget"])
    terminated, waiting = container.get("terminated", {}), container.get("waiting", {})
    if terminated.get("reason") not in (None, "Error", "Completed"):
        return _text(terminated)
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return _text(waiting)
    if conditions.get("PodScheduled", {}).get("status") == "False":
        return _text(conditions["PodScheduled"])
    return None


def _text(told: Object) -> str:
    reason, message = told.get("reason", ""), told.get("message", "")
    return ": ".join(part for part in (reason, message) if part)
