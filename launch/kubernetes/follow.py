"""A job followed to its end: what the cluster says of it, and what its nodes write.

Watches and logs are read side by side; what they give is told by one thread, which alone decides
when the job has ended.
"""

import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace

from distrain.errors import ExitCode
from launch.failure import Cause, tell
from launch.kubernetes.cluster import Cluster, Object, Query
from launch.kubernetes.cluster_errors import ClusterError
from launch.kubernetes.connection import LOST_AFTER_S, NodeLogs
from launch.kubernetes.feeds import Feeds, Read
from launch.kubernetes.job_status import (
    JobStatus,
    Node,
    belongs,
    children,
    exit_code,
    job_status,
    node_of,
)
from launch.kubernetes.kinds import EVENT, POD, Kind, selector_of
from launch.kubernetes.lookup import find_job, inner_job
from launch.kubernetes.pod_logs import followed_log, log_end
from launch.kubernetes.tidings import (
    end_line,
    event_line,
    gone_line,
    node_line,
    time_of,
    title,
)
from launch.kubernetes.watching import Change, Patience, by_list, changes

_MOST_LOGS = 64
_TAIL = 100
_MOST_EARLY = 1_000
_LOGS_END_WITHIN_S = 10.0
_A_LOOK_S = 0.2

_STANDS = {
    "suspended": "is suspended: {}",
    "ending": "is being removed",
}
_SAVED = "what it has saved is there, and the same job goes on from it"


def follow(
    cluster: Cluster, name: str, *, logs: NodeLogs = "rank0", lost_after_s: float = LOST_AFTER_S
) -> Cause | None:
    """Tells on the terminal what happens to a job, until it has ended; Ctrl-C ends this alone.

    Args:
        cluster: Where.
        name: The job's.
        logs: Which nodes' logs to show: the first one's, all, or the end of those that fail.
        lost_after_s: Seconds without an answer after which the cluster counts as lost.

    Returns:
        How the job failed, or None where it is done. The exit code is that of the node which
        failed; 75 where the job was suspended or removed, 130 after Ctrl-C.

    Raises:
        UsageError: there is no such job.
        ClusterError: the cluster refuses, or is lost.
    """
    kind, top = find_job(cluster, name)
    following = _Following(cluster, kind, top, logs, lost_after_s)
    try:
        return following.to_the_end()
    except KeyboardInterrupt:
        return Cause(
            0,
            ExitCode.CTRL_C,
            f"no longer following; the job {name} goes on. To follow it again: "
            f"{cluster.command('follow', name)}; to end it: {cluster.command('cancel', name)}",
        )
    finally:
        following.stop()


class _Following:
    """What is known of a job that is being followed."""

    def __init__(
        self, cluster: Cluster, kind: Kind, top: Object, logs: NodeLogs, lost_after_s: float
    ) -> None:
        """`top` is the job's object as it was found."""
        self._cluster, self._logs, self._lost_after_s = cluster, logs, lost_after_s
        self._kind, self._top, self._state = kind, top, ""
        self._name, self._uid = top["metadata"]["name"], top["metadata"]["uid"]
        self._feeds = Feeds()
        self._pods: dict[str, Object] = {}
        self._nodes: dict[str, Node] = {}
        """Of all pods, also those that are gone; by their uid."""
        self._logs_of: dict[str, Node] = {}
        """Of which pod a log is being read, by the feed's name."""
        self._logs_begun: set[str] = set()
        self._logs_behind: dict[str, tuple[Node, float]] = {}
        """By uid, pods whose predecessors' logs are being read; until when that is waited for."""
        self._early: deque[Object] = deque(maxlen=_MOST_EARLY)
        """Events of pods that the watch of pods has not told of yet."""
        self._told: set[str] = set()
        self._events_may_be_read = True

    def to_the_end(self) -> Cause | None:
        """Tells all until the job has ended."""
        self._watch(POD, (("labelSelector", selector_of(self._name)),))
        self._watch(EVENT, ())
        self._watch(self._kind, (("fieldSelector", f"metadata.name={self._name}"),))
        while True:
            read = self._feeds.next(timeout_s=_A_LOOK_S if self._logs_behind else None)
            status = None if read is None else self._take(read)
            if status is not None:
                return self._end(status)
            self._begin_logs_behind()

    def stop(self) -> None:
        """Ends all that is being read."""
        self._feeds.stopped.set()
        self._cluster.end_streams()
        self._feeds.join()

    def _watch(self, kind: Kind, query: Query) -> None:
        patience = Patience(self._lost_after_s, self._feeds.stopped)
        self._feeds.start(kind.name, changes(self._cluster, kind, query, patience))

    def _take(self, read: Read) -> JobStatus | None:
        """Tells one thing that was read; gives the job's status where it has ended by it."""
        if read.feed in self._logs_of:
            self._take_log(read)
        elif isinstance(read.item, Exception):
            self._take_failure(read)
        elif isinstance(read.item, Change) and read.feed == POD.name:
            self._take_pod(read.item)
        elif isinstance(read.item, Change) and read.feed == EVENT.name:
            self._take_event(read.item.object)
        elif isinstance(read.item, Change):
            return self._take_job(read.item)
        return None

    def _take_failure(self, read: Read) -> None:
        error: Exception = read.item
        if not (
            isinstance(error, ClusterError) and error.status == 403 and read.feed == EVENT.name
        ):
            raise error
        self._events_may_be_read = False
        self._say(f"events are left out: {error}")
        for node in self._nodes.values():
            if node.phase == "Pending":  # which events would have told of
                self._say(node_line(None, node, tells_waiting=True))

    def _take_log(self, read: Read) -> None:
        node = self._logs_of[read.feed]
        if isinstance(read.item, str):
            prefix = "" if self._logs == "rank0" else f"[{title(node)}] "
            print(f"{prefix}{read.item}", flush=True)
            return
        del self._logs_of[read.feed]
        if isinstance(read.item, ClusterError) and read.item.status == 403:
            self._say(f"logs are left out: {read.item}")
        elif isinstance(read.item, Exception):
            raise read.item

    def _take_pod(self, change: Change) -> None:
        if not belongs(change.object, self._top):
            return
        uid, node = change.object["metadata"]["uid"], node_of(change.object)
        before = self._nodes.get(uid)
        if change.what == "gone":
            self._pods.pop(uid, None)
            self._say(gone_line(node))
            return
        self._pods[uid], self._nodes[uid] = change.object, node
        self._say(node_line(before, node, tells_waiting=not self._events_may_be_read))
        if before is None:
            early = [each for each in self._early if each["involvedObject"].get("uid") == uid]
            for event in early:
                self._take_event(event)
        self._read_log(uid, node)

    def _read_log(self, uid: str, node: Node) -> None:
        """Begins to read a pod's log, where it is wanted and there."""
        if uid in self._logs_begun or not self._wants_log(node):
            return
        self._logs_begun.add(uid)
        self._begin_log(uid, node)

    def _begin_log(self, uid: str, node: Node) -> None:
        """Begins at once, or behind the log of the pod that this one replaces."""
        if self._is_read(node):
            self._logs_behind[uid] = node, time.monotonic() + _LOGS_END_WITHIN_S
        else:
            self._start_log(uid, node)

    def _is_read(self, node: Node) -> bool:
        """Whether of this node's number a pod's log is being read."""
        numbers = {of.number for of in self._logs_of.values()}
        return node.number is not None and node.number in numbers

    def _begin_logs_behind(self) -> None:
        for uid, (node, until) in list(self._logs_behind.items()):
            if not self._is_read(node) or time.monotonic() >= until:  # a lost machine's has no end
                del self._logs_behind[uid]
                self._start_log(uid, node)

    def _start_log(self, uid: str, node: Node) -> None:
        if len(self._logs_of) >= _MOST_LOGS:
            self._say(f"{title(node)}: its log is left out; {_MOST_LOGS} at most at a time")
            return
        feed = f"log of {uid}"
        self._logs_of[feed] = node
        patience = Patience(self._lost_after_s, self._feeds.stopped)
        if self._logs == "failed":
            self._feeds.start(feed, log_end(self._cluster, node.pod, _TAIL, patience))
        else:
            self._feeds.start(feed, followed_log(self._cluster, node.pod, patience))

    def _wants_log(self, node: Node) -> bool:
        if self._logs == "failed":
            return node.phase == "Failed"
        is_wanted = self._logs == "all" or node.number in (0, None)
        return is_wanted and node.phase != "Pending"

    def _take_event(self, event: Object) -> None:
        told_of = event["involvedObject"]
        mine = told_of.get("uid") in {self._uid, *self._nodes}
        of_child = (told_of.get("kind"), told_of.get("name")) in children(self._top)
        if mine or (of_child and time_of(event) >= self._top["metadata"]["creationTimestamp"]):
            line = event_line(event)
            if line is not None and line not in self._told:
                self._told.add(line)
                self._say(line)
        elif told_of.get("kind") == "Pod":
            self._early.append(event)

    def _take_job(self, change: Change) -> JobStatus | None:
        if change.object["metadata"]["uid"] != self._uid:  # removed, and another made in its place
            change = Change("gone", self._top)
        self._top = change.object
        status = self._status()
        if status.exit_code is not None:
            return status
        if change.what == "gone":
            return replace(status, state="ending")
        has_run = any(node.phase != "Pending" for node in self._nodes.values())
        if status.state == "suspended" and has_run:
            return status
        if status.state != self._state and status.state in ("suspended", "ending"):
            self._say(f"the job {self._name} {_STANDS[status.state].format(status.reason)}")
        self._state = status.state
        return None

    def _status(self) -> JobStatus:
        return job_status(self._top, self._pods.values())

    def _end(self, status: JobStatus) -> Cause | None:
        """Tells what is still to be told, and how the job has ended."""
        self._catch_up()
        self._tell_ends_of_logs(status)
        if status.state == "done":
            self._say(f"the job {self._name} is done")
            return None
        if status.state != "failed":
            stopped = "was suspended" if status.state == "suspended" else "was removed"
            return Cause(0, ExitCode.STOPPED, f"the job {self._name} {stopped}; {_SAVED}")
        with suppress(ClusterError):
            inner = inner_job(self._cluster, self._top)
            status = job_status(self._top, self._pods.values(), inner)
        code = exit_code(status.state, status.reason, list(self._nodes.values()))
        code = ExitCode.FAULT if code is None else code
        return Cause(0, code, end_line(status, code))

    def _catch_up(self) -> None:
        """Takes in what the watches may be about to tell: the pods' ends, and why."""
        # What is known already has to do where the cluster can't be asked any more.
        with suppress(ClusterError):
            query = (("labelSelector", selector_of(self._name)),)
            for change in by_list(self._cluster.listed(POD, query)["items"], self._pods):
                self._take_pod(change)
            if self._events_may_be_read:
                self._catch_up_with_events()

    def _catch_up_with_events(self) -> None:
        try:
            for event in self._cluster.listed(EVENT)["items"]:
                self._take_event(event)
        except ClusterError as error:
            self._take_failure(Read(EVENT.name, error))

    def _tell_ends_of_logs(self, status: JobStatus) -> None:
        """Tells what nodes have still written, and of which there may be more."""
        within_s = self._logs_end_within_s(status)
        deadline = time.monotonic() + within_s
        while self._logs_of and time.monotonic() < deadline:
            read = self._feeds.next(timeout_s=_A_LOOK_S)
            if read is not None and read.feed in self._logs_of:
                self._take_log(read)
                if status.exit_code is not None:  # all is written, however long it takes to come
                    deadline = time.monotonic() + within_s
            self._begin_logs_behind()
        left = [*self._logs_of.values(), *(node for node, _ in self._logs_behind.values())]
        for node in left:
            self._say(f"{title(node)}: its log may not be whole: no end of it for {within_s:g} s")

    def _logs_end_within_s(self, status: JobStatus) -> float:
        """Pods of a job that has ended have ended as well; others may still be saving."""
        if status.exit_code is not None:
            return _LOGS_END_WITHIN_S
        specs = [pod["spec"] for pod in self._pods.values()]
        graces = [float(spec.get("terminationGracePeriodSeconds", 30)) for spec in specs]
        return _LOGS_END_WITHIN_S + max(graces, default=0.0)

    def _say(self, line: str | None) -> None:
        if line is not None:
            tell(f"distrain: {line}\n", sys.stderr)
