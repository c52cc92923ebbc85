"""A job's end before its time: what runs is removed, then all that was made for it.

    its parts lose their owner -> what runs is removed, its pods save -> its parts are removed

Left to the owner, the cluster would remove the rule of who may reach the pods while they are still
saving, for which they have to reach each other.
"""

import time
from collections.abc import Sequence

from launch.kubernetes.cluster import Cluster, Object
from launch.kubernetes.cluster_errors import ClusterError, lost
from launch.kubernetes.kinds import PARTS, TOPS, Kind
from launch.kubernetes.lookup import own_objects

_LOOKS_EVERY_S = 0.5

Found = Sequence[tuple[Kind, Object]]


def cancel(cluster: Cluster, name: str, *, timeout_s: float) -> bool:
    """Removes a job and waits until it is gone; its pods get the time to save that they have.

    What a submission or a cancellation left behind that was killed in the middle of it is removed
    as well.

    Args:
        cluster: Where.
        name: The job's.
        timeout_s: How long to wait; 0 for not at all, and all is removed at once.

    Returns:
        Whether there was anything to remove.

    Raises:
        UsageError: there is a job of this name that is none of distrain's.
        ClusterError: the job is still there at the end of the time, or the cluster refuses.
    """
    there = own_objects(cluster, name, (*TOPS, *PARTS))
    runs = [each for each in there if each[0] in TOPS]
    parts = [each for each in there if each[0] not in TOPS]
    if runs and timeout_s:
        _disown(cluster, name, parts)
    deadline = time.monotonic() + timeout_s
    for found in (runs, parts):
        for kind, _ in found:
            cluster.remove(kind, name)
        if timeout_s and not _is_gone(cluster, name, found, deadline):
            raise lost(
                f"the job {name} is being removed, and not gone after {timeout_s:g} s; its pods "
                f"may still be saving: look with `{cluster.command('status', name)}`, and cancel "
                "it again once they are gone, to remove the rest"
            )
    return bool(there)


def _disown(cluster: Cluster, name: str, parts: Found) -> None:
    """Takes from a job's parts the owner with which they would be removed."""
    for kind, found in parts:
        if "ownerReferences" not in found["metadata"]:
            continue
        try:
            cluster.patch(
                kind, name, {"metadata": {"ownerReferences": None}}, manager="distrain-cancel"
            )
        except ClusterError as error:
            if error.status != 404:  # which has gone just now
                raise


def _is_gone(cluster: Cluster, name: str, found: Found, deadline: float) -> bool:
    """Whether all of these go in time."""
    kinds = [kind for kind, _ in found]
    uids = {each["metadata"]["uid"] for _, each in found}
    while uids:
        uids &= {each["metadata"]["uid"] for _, each in own_objects(cluster, name, kinds)}
        if uids and time.monotonic() >= deadline:
            return False
        if uids:
            time.sleep(_LOOKS_EVERY_S)
    return True
