"""A pod's log, line by line, each once, through whatever breaks on the way."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime

from launch.kubernetes.cluster import Cluster, Object
from launch.kubernetes.cluster_errors import ClusterError
from launch.kubernetes.job_status import node_of
from launch.kubernetes.kinds import POD
from launch.kubernetes.watching import Patience

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


class LogPlace:
    """Where reading has come to, by the times that the node gives to lines.

    A server is asked by the second, so it sends some lines again: those of an earlier time, and of
    the same time as many as were read.
    """

    def __init__(self) -> None:
        """At the log's begin."""
        self._read = self._before = (0, 0)
        self._num_read = self._num_before = 0

    def begin(self) -> list[tuple[str, str]]:
        """What to ask for next: the log from here on."""
        self._before, self._num_before = self._read, self._num_read
        second, _ = self._read
        if not second:
            return []
        return [("sinceTime", datetime.fromtimestamp(second, UTC).isoformat())]

    def new(self, line: bytes) -> str | None:
        """The text of a line as it was sent, its time before it; None if it has been read."""
        stamp, _, text = line.rstrip(b"\r\n").decode("utf-8", "replace").partition(" ")
        found = _STAMP.fullmatch(stamp)
        if found is None:  # the node itself says something
            return f"{stamp} {text}".rstrip()
        second = int(datetime.fromisoformat(found[1] + found[3].replace("Z", "+00:00")).timestamp())
        time = second, int((found[2] or "").ljust(9, "0"))
        if time < self._before:
            return None
        if time == self._before and self._num_before:
            self._num_before -= 1
            return None
        self._num_read = self._num_read + 1 if time == self._read else 1
        self._read = time
        return text


def followed_log(cluster: Cluster, pod: str, patience: Patience) -> Iterator[str]:
    """The lines of a pod's log until its container has ended and all is read.

    Raises:
        ClusterError: the cluster refuses, or is lost.
    """
    place = LogPlace()
    while not patience.stopped.is_set():
        ended = False
        try:
            # Looked at before: what is written until the end is then in the log that follows.
            ended = _has_ended(cluster.read(POD, pod, patient=False))
            asked = [("follow", "true"), ("timestamps", "true"), *place.begin()]
            with cluster.pod_log(pod, asked) as lines:
                patience.answered()
                for line in lines:
                    # The half of a line comes whole when the log is asked for again.
                    text = place.new(line) if ended or line.endswith(b"\n") else None
                    if text is not None:
                        yield text
            if ended:
                return
        except ClusterError as error:
            if patience.stopped.is_set() or (ended and error.status in (400, 404)):
                return
            if error.status not in (400, 404):  # the container is not there yet, or the pod's gone
                patience.wait(error)
        patience.pause()


def log_end(cluster: Cluster, pod: str, num_lines: int, patience: Patience) -> Iterator[str]:
    """The last lines of a pod's log; none where it is gone, or never began.

    Raises:
        ClusterError: the cluster refuses, or is lost.
    """
    while not patience.stopped.is_set():
        try:
            with cluster.pod_log(pod, [("tailLines", str(num_lines))]) as lines:
                found = [line.decode("utf-8", "replace").rstrip("\r\n") for line in lines]
        except ClusterError as error:
            if error.status in (400, 404):
                return
            patience.wait(error)
        else:
            yield from found
            return


def _has_ended(pod: Object | None) -> bool:
    """Whether a pod's containers write no more."""
    return pod is None or node_of(pod).phase in ("Succeeded", "Failed")
