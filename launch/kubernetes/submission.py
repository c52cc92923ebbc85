"""A job's objects made in a cluster, all of them or none.

What the pods need (the job file, their names, the rule of who may reach them) is made before what
runs, so that no pod ever starts without it, and a TrainJob finds its runtime. Each is then given
what runs as its owner, so that the cluster removes all of it together. Were what runs made first,
suspended, to own the rest from the start, a queue might start it at any moment in between, and
Trainer would refuse it.
"""

import sys
import uuid
from collections.abc import Sequence
from typing import Literal

from distrain.errors import ConfigError, UsageError
from launch.kubernetes.cluster import Cluster, Object
from launch.kubernetes.cluster_errors import ClusterError
from launch.kubernetes.kinds import JOB_SET, TRAIN_JOB, Kind, is_ours, kind_of
from launch.kubernetes.options import Form

_INSTALLED_BY = {
    JOB_SET: "JobSet (https://jobset.sigs.k8s.io/docs/installation/)",
    TRAIN_JOB: "Kubeflow Trainer v2 (https://www.kubeflow.org/docs/components/trainer/)",
}


def chosen_form(cluster: Cluster, asked: Form | Literal["auto"]) -> Form:
    """The form that a job takes: the one asked for, else a JobSet where the cluster knows them.

    Raises:
        ConfigError: what the form needs is not installed.
        ClusterError: the cluster can't be asked.
    """
    if asked == "auto":
        return "jobset" if cluster.serves(JOB_SET) else "job"
    needed = {"jobset": JOB_SET, "trainjob": TRAIN_JOB}.get(asked)
    if needed is not None and not cluster.serves(needed):
        raise ConfigError(
            f"--form {asked}, but the cluster at {cluster.host} knows no {needed.name} "
            f"({needed.api_version}): have {_INSTALLED_BY[needed]} installed, or give --form job, "
            "which needs nothing"
        )
    return asked


def submit(cluster: Cluster, manifests: Sequence[Object]) -> None:
    """Makes a job's objects; when one can't be made, those that were are removed again.

    Args:
        cluster: Where.
        manifests: In the order in which they are to be made; what runs comes last.

    Raises:
        UsageError: there is something of this name already.
        ClusterError: the cluster refuses an object, or can't be reached.
    """
    # The server notes it, so that what this call has made can be told from what was there before.
    manager = f"distrain-{uuid.uuid4().hex[:12]}"
    begun: list[Object] = []
    try:
        for manifest in manifests:
            begun.append(manifest)
            made = _create(cluster, manifest, manager)
        owner = {name: made[name] for name in ("apiVersion", "kind")}
        owner |= {name: made["metadata"][name] for name in ("name", "uid")}
        for manifest in manifests[:-1]:
            owned = {"metadata": {"ownerReferences": [owner]}}
            cluster.patch(kind_of(manifest), _name(manifest), owned, manager=manager)
    except BaseException:
        _undo(cluster, begun, manager)
        raise


def _create(cluster: Cluster, manifest: Object, manager: str) -> Object:
    kind, name = kind_of(manifest), _name(manifest)
    try:
        return cluster.create(kind, manifest, manager=manager)
    except ClusterError as error:
        found = cluster.read(kind, name) if error.status == 409 else None
        if found is None:
            raise
        if _is_made_by(found, manager):  # by a request whose answer was lost on the way
            return found
        raise UsageError(_taken(cluster, kind, name, found)) from error


def _taken(cluster: Cluster, kind: Kind, name: str, found: Object) -> str:
    if not is_ours(found):
        return (
            f"namespace {cluster.namespace} has a {kind.name} {name} already, and not of "
            "distrain's making: give --name another"
        )
    return (
        f"namespace {cluster.namespace} has a job {name} already (its {kind.name} is there): give "
        f"--name another, look at it with `{cluster.command('status', name)}`, or remove it with "
        f"`{cluster.command('cancel', name)}`"
    )


def _undo(cluster: Cluster, begun: Sequence[Object], manager: str) -> None:
    """Removes what was made, what runs first; says so where that fails as well."""
    left: list[str] = []
    answers = True
    for manifest in reversed(begun):
        kind, name = kind_of(manifest), _name(manifest)
        if not answers:  # one that was waited for in vain is enough
            left.append(kind.name)
            continue
        try:
            found = cluster.read(kind, name)
            if found is not None and _is_made_by(found, manager):
                cluster.remove(kind, name)
        except ClusterError as error:
            left.append(kind.name)
            answers = error.status is not None
    if left:
        name = _name(begun[-1])
        print(
            f"distrain: what was made may still be there ({', '.join(left)}); to remove it: "
            f"{cluster.command('cancel', name)}",
            file=sys.stderr,
        )


def _is_made_by(found: Object, manager: str) -> bool:
    noted = found["metadata"].get("managedFields", ())
    return any(entry.get("manager") == manager for entry in noted)


def _name(manifest: Object) -> str:
    return str(manifest["metadata"]["name"])
