"""What is worth telling of a job that is being followed, in a line each: pure, from values."""

from collections.abc import Iterable
from typing import Any

from launch.kubernetes.job_status import JobStatus, Node, Object, children, ended_text

_TOLD = {
    *("Pulling", "Preempted", "Suspended", "Resumed"),
    *("TriggeredScaleUp", "NotTriggerScaleUp", "TaintManagerEviction"),
}
"""Events that are no warnings, and still say why something takes long."""


def time_of(event: Object) -> str:
    """When an event last happened, in RFC 3339."""
    times = (event.get("lastTimestamp"), event.get("eventTime"))
    return next((str(time) for time in times if time), event["metadata"]["creationTimestamp"])


def why_no_pods(events: Iterable[Object], top: Object) -> str | None:
    """What kept the cluster from making a job's pods, by the newest warning; None if nothing has.

    Args:
        events: Of the namespace, in any order.
        top: The job's object.
    """
    made, own = top["metadata"].get("creationTimestamp", ""), children(top)
    told = [
        (time_of(event), f"{event.get('reason', '')}: {event.get('message', '')}")
        for event in events
        if event.get("type") == "Warning"
        and (event["involvedObject"].get("kind"), event["involvedObject"].get("name")) in own
        and time_of(event) >= made
    ]
    return max(told)[1] if told else None


def event_line(event: dict[str, Any]) -> str | None:
    """An event, if it is worth a line."""
    reason = event.get("reason", "")
    if event.get("type") != "Warning" and reason not in _TOLD:
        return None
    message = " ".join(str(event.get("message", "")).split())
    return f"{event['involvedObject'].get('name', '')}: {reason}: {message}"


def node_line(before: Node | None, after: Node, *, tells_waiting: bool) -> str | None:
    """What has changed about a pod, if it is worth a line.

    Args:
        before: As it was; None where it is new.
        after: As it is.
        tells_waiting: Whether to say why it waits; events do, where they may be read.
    """
    who = title(after)
    if before is not None and before.phase == after.phase:
        waits = (
            tells_waiting and after.phase == "Pending" and after.reason not in (None, before.reason)
        )
        return f"{who} waits: {after.reason}" if waits else None
    if after.phase == "Running":
        return f"{who} runs on {after.machine} as {after.pod}"
    if after.phase == "Succeeded":
        return f"{who} has ended well"
    if after.phase == "Terminating":
        return f"{who} is being stopped"
    if after.phase == "Failed":
        return f"{who} failed: {failure(after)}"
    return f"{who} waits: {after.reason}" if tells_waiting and after.reason else None


def gone_line(node: Node) -> str | None:
    """That a pod is no longer there, if it had not ended before."""
    if node.phase in ("Succeeded", "Failed"):
        return None
    return f"{title(node)}: the pod {node.pod} is gone"


def failure(node: Node) -> str:
    """Why a pod failed."""
    told = [] if node.exit_code is None else [ended_text(node.exit_code)]
    if node.reason:
        told.append(" ".join(node.reason.split()))
    return ", ".join(told) or "for no reason that the cluster knows"


def title(node: Node) -> str:
    """What a node is called."""
    return f"pod {node.pod}" if node.number is None else f"node {node.number}"


def end_line(status: JobStatus, code: int) -> str:
    """How a job has ended badly."""
    why = f": {' '.join(status.reason.split())}" if status.reason else ""
    return f"the job {status.name} failed with {ended_text(code)}{why}"
