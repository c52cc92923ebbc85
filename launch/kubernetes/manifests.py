"""All that is made in a cluster for one job."""

from pathlib import PurePosixPath
from typing import Any

from distrain.errors import UsageError
from launch.horovod.rules import check_on_cluster
from launch.job_spec import JOB_PATH, JobFile, JobSpec
from launch.kubernetes.indexed_job import indexed_job
from launch.kubernetes.jobset import jobset
from launch.kubernetes.labels import metadata
from launch.kubernetes.network import headless_service, network_policy
from launch.kubernetes.options import KubernetesOptions
from launch.kubernetes.rules import broken
from launch.kubernetes.trainjob import training_runtime, trainjob


def manifests(spec: JobSpec, options: KubernetesOptions) -> list[dict[str, Any]]:
    """The objects, in the order in which they are to be made; what runs comes last.

    Raises:
        UsageError: a rule of the API server's is broken, or the job can't run there.
    """
    check_on_cluster(spec, "Kubernetes")
    found = [*_shared(spec, options), *_running(spec, options)]
    refused = broken(found)
    if refused:
        raise UsageError("the cluster would refuse this:\n  " + "\n  ".join(refused))
    return found


def _shared(spec: JobSpec, options: KubernetesOptions) -> list[dict[str, Any]]:
    job = [_job_map(spec, options)] if isinstance(spec.program, JobFile) else []
    return [*job, network_policy(spec, options)]


def _running(spec: JobSpec, options: KubernetesOptions) -> list[dict[str, Any]]:
    if options.form == "trainjob":
        return [training_runtime(spec, options), trainjob(spec, options)]
    if options.form == "jobset":
        return [jobset(spec, options)]
    service = [headless_service(spec, options)] if spec.nodes.most > 1 else []
    return [*service, indexed_job(spec, options)]


def _job_map(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    assert isinstance(spec.program, JobFile)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(spec.name, namespace=options.namespace, labels=options.labels),
        # A pod that is replaced has to find the job that the run was begun with.
        "immutable": True,
        "data": {PurePosixPath(JOB_PATH).name: spec.program.toml},
    }
