"""A kind's objects and all that changes about them, through whatever breaks on the way.

    list (at version v) -> watch from v: changes, each with a version, bookmarks
           ^                     |
           |                     +-- the connection ends, or breaks: watch from the last version on
           +-- 410: that version is forgotten, so whatever came in between is in a new list

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from launch.kubernetes.cluster import Cluster, Object, Query
from launch.kubernetes.cluster_errors import ClusterError, lost, refused
from launch.kubernetes.kinds import Kind

_A_WATCH_S = 240
"""After so long the server ends it, and another begins."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0


@dataclass(frozen=True)
class Change:
    """What has happened to an object; `there` for each of a list, before what a list lacks."""

    what: Literal["there", "changed", "gone"]
    object: Object


class Patience:
    """How long to go on asking a cluster that gives no answer, and how often.

    Attributes:
        stopped: Set when nothing is waited for any more.
    """

    def __init__(self, limit_s: float, stopped: threading.Event) -> None:
        """`limit_s` is the time without an answer after which the cluster counts as lost."""
        self._limit_s, self.stopped = limit_s, stopped
        self._failed_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def answered(self) -> None:
        """Notes that the cluster is there."""
        self._failed_since, self._pause_s = None, _FIRST_PAUSE_S

    def pause(self) -> None:
        """Leaves the server a moment before it is asked for what it has just ended."""
        self.stopped.wait(_FIRST_PAUSE_S)

    def wait(self, error: ClusterError) -> None:
        """Waits before the next try, longer each time, or as long as the server asks for.

        Raises:
            ClusterError: the error is none that may pass, or has lasted for too long.
        """
        if not error.may_pass:
            raise error
        now = time.monotonic()
        if self._failed_since is None:
            self._failed_since = now
        if now - self._failed_since >= self._limit_s:
            raise lost(f"no answer for {self._limit_s:g} s, the last try: {error}") from error
        self.stopped.wait(error.retry_after_s or self._pause_s)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


def changes(cluster: Cluster, kind: Kind, query: Query, patience: Patience) -> Iterator[Change]:
    """What there is of a kind, then all that changes, until `patience.stopped` is set.

    An object that went while nobody watched is told as gone after the next list, in its last
    known form. What a watch tells twice comes twice.

    Raises:
        ClusterError: the cluster refuses, or is lost.
    """
    known: dict[str, Object] = {}
    version: str | None = None
    while not patience.stopped.is_set():
        try:
            if version is None:
                listed = cluster.listed(kind, query, patient=False)
                patience.answered()
                version = listed["metadata"]["resourceVersion"]
                yield from _of_list(listed["items"], known)
            for change, at in _watched(cluster, kind, query, version):
                patience.answered()
                version = at
                if change is not None:
                    _note(change, known)
                    yield change
        except ClusterError as error:
            if patience.stopped.is_set():
                return
            if error.status == 410:
                version = None
            else:
                patience.wait(error)
                continue
        patience.pause()


def by_list(items: list[Object], known: Mapping[str, Object]) -> list[Change]:
    """What a list says of objects that were known by uid: who is there, oldest first, and gone."""
    there = {item["metadata"]["uid"] for item in items}
    oldest_first = sorted(items, key=lambda item: item["metadata"].get("creationTimestamp", ""))
    found = [Change("there", item) for item in oldest_first]
    return found + [Change("gone", known[uid]) for uid in known if uid not in there]


def _of_list(items: list[Object], known: dict[str, Object]) -> Iterator[Change]:
    for change in by_list(items, known):
        _note(change, known)
        yield change


def _note(change: Change, known: dict[str, Object]) -> None:
    uid = change.object["metadata"]["uid"]
    if change.what == "gone":
        known.pop(uid, None)
    else:
        known[uid] = change.object


def _watched(
    cluster: Cluster, kind: Kind, query: Query, version: str
) -> Iterator[tuple[Change | None, str]]:
    """One watch, from a version on: changes, each with its version; None tells that alone."""
    asked = [
        *query,
        ("watch", "true"),
        ("resourceVersion", version),
        ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", str(_A_WATCH_S)),
    ]
    with cluster.watch(kind, asked) as lines:
        yield None, version
        for line in lines:
            told = _told(line)
            found = told["object"]
            if told["type"] == "ERROR":
                raise _refused(cluster, kind, found)
            at = found["metadata"]["resourceVersion"]
            if told["type"] == "BOOKMARK":
                yield None, at
            else:
                yield Change("gone" if told["type"] == "DELETED" else "changed", found), at


def _told(line: bytes) -> Object:
    try:
        told: Object = json.loads(line)
    except ValueError as error:
        raise lost(f"a watch was answered with what is no JSON: {line[:80]!r}") from error
    return told


def _refused(cluster: Cluster, kind: Kind, status: Object) -> ClusterError:
    return refused(
        status.get("code", 500),
        json.dumps(status),
        {},
        method="WATCH",
        what=kind.full_name,
        namespace=cluster.namespace,
        host=cluster.host,
    )
