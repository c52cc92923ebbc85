"""The objects of a job that is there, by its name."""

from collections.abc import Sequence

from distrain.errors import UsageError
from launch.kubernetes.cluster import Cluster, Object
from launch.kubernetes.cluster_errors import ClusterError
from launch.kubernetes.job_status import children
from launch.kubernetes.kinds import JOB, SELECTOR, TOPS, Kind, is_made_by_another, is_ours


def find_job(cluster: Cluster, name: str) -> tuple[Kind, Object]:
    """What runs of a job: its TrainJob, JobSet or Job.

    Raises:
        UsageError: there is none of this name that distrain has made.
        ClusterError: the cluster refuses to say, or can't be reached.
    """
    for kind, found in own_objects(cluster, name, TOPS):
        return kind, found
    raise UsageError(
        f"there is no job {name} in namespace {cluster.namespace} of the cluster at "
        f"{cluster.host}: check the name, --namespace and --context"
    )


def all_jobs(cluster: Cluster) -> list[Object]:
    """What runs of all jobs in the namespace, the oldest first.

    Raises:
        ClusterError: the cluster refuses to say, or can't be reached.
    """
    found = [each for kind in TOPS for each in _listed(cluster, kind)]
    ours = [each for each in found if is_ours(each) and not is_made_by_another(each)]
    return sorted(ours, key=lambda each: each["metadata"].get("creationTimestamp", ""))


def inner_job(cluster: Cluster, top: Object) -> Object | None:
    """The Job within a JobSet or a TrainJob; None where there is none, or it may not be read.

    Raises:
        ClusterError: the cluster can't be reached.
    """
    names = [name for kind, name in children(top) if kind == JOB.name]
    if top["kind"] == JOB.name or not names:
        return None
    try:
        return cluster.read(JOB, names[0])
    except ClusterError as error:
        if error.status == 403:
            return None
        raise


def own_objects(cluster: Cluster, name: str, kinds: Sequence[Kind]) -> list[tuple[Kind, Object]]:
    """Those of a name that distrain has made.

    Raises:
        UsageError: there is none, but a job of somebody else's.
        ClusterError: the cluster refuses to say, or can't be reached.
    """
    there = [(kind, _visible(cluster, kind, name)) for kind in kinds]
    found = [(kind, each) for kind, each in there if each is not None]
    found = [(kind, each) for kind, each in found if not is_made_by_another(each)]
    ours = [(kind, each) for kind, each in found if is_ours(each)]
    if not ours and any(kind in TOPS for kind, _ in found):
        raise UsageError(
            f"the {found[0][0].name} {name} in namespace {cluster.namespace} is not of distrain's "
            "making: use kubectl for it"
        )
    return ours


def _listed(cluster: Cluster, kind: Kind) -> list[Object]:
    """All objects of a kind that might be ours; none where the kind isn't installed."""
    try:
        items = cluster.listed(kind, (("labelSelector", SELECTOR),))["items"]
    except ClusterError as error:
        if kind.is_custom and error.status in (403, 404):
            return []
        raise
    # The items of a list don't say of which kind they are.
    return [{"apiVersion": kind.api_version, "kind": kind.name, **each} for each in items]


def _visible(cluster: Cluster, kind: Kind, name: str) -> Object | None:
    """An object; None where there is none, or none can be.

    Who has no rights on a kind that isn't even installed is told 403 all the same.
    """
    try:
        return cluster.read(kind, name)
    except ClusterError as error:
        if error.status == 403 and kind.is_custom:
            return None
        raise
