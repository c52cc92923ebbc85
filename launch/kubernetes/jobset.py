"""A JobSet (kubernetes-sigs/jobset): the Job within a set, which makes its Service and names."""

from typing import Any

from launch.job_spec import JobSpec
from launch.kubernetes.indexed_job import forgotten_after, job_body, queue_label
from launch.kubernetes.labels import metadata
from launch.kubernetes.options import KubernetesOptions

REPLICATED_JOB = "node"
"""Its Job's place in the set; `launch.job_spec.MOST_IN_NAME` counts on these four letters."""


def jobset(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    """The JobSet; its pods are reached as NAME-node-0-INDEX.NAME."""
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata(
            spec.name,
            namespace=options.namespace,
            labels={**queue_label(options), **options.labels},
        ),
        "spec": {
            **forgotten_after(options),
            **jobset_body(spec, job_body(spec, options, host=first_host(spec))),
        },
    }


def first_host(spec: JobSpec) -> str:
    """The first node's name, as the others reach it."""
    return f"{spec.name}-{REPLICATED_JOB}-0-0.{spec.name}"


def jobset_body(
    spec: JobSpec, job: dict[str, Any], labels: dict[str, str] | None = None
) -> dict[str, Any]:
    """A JobSet's `spec`, as Trainer takes it into a runtime.

    Args:
        spec: The job.
        job: The `spec` of its one Job.
        labels: Of that Job.
    """
    network: dict[str, Any] = {"enableDNSHostnames": False}
    if spec.nodes.most > 1:
        network = {
            "enableDNSHostnames": True,
            "subdomain": spec.name,
            "publishNotReadyAddresses": True,
        }
    marked = {} if labels is None else {"metadata": {"labels": labels}}
    return {
        "network": network,
        # The Job itself replaces pods, as often as each may fail, past disruptions: when it fails,
        # another start of all would not help. The rule holds where somebody raises the number.
        "failurePolicy": {
            "maxRestarts": 0,
            "rules": [
                {
                    "name": "fatal",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "successPolicy": {"operator": "All"},
        "replicatedJobs": [
            {
                "name": REPLICATED_JOB,
                "replicas": 1,
                "template": {**marked, "spec": job},
            }
        ],
    }
