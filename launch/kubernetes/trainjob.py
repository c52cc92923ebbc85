"""A TrainJob (Kubeflow Trainer v2) and the TrainingRuntime that it starts from.

The runtime says how a node of distrain's runs, the TrainJob what: Trainer puts the latter's image,
command, variables, resources and number of nodes into the runtime's JobSet, which is called as the
TrainJob is.
"""

from typing import Any

from launch.job_spec import JobSpec
from launch.kubernetes.indexed_job import job_body, queue_label
from launch.kubernetes.jobset import first_host, jobset_body
from launch.kubernetes.labels import metadata
from launch.kubernetes.options import KubernetesOptions
from launch.kubernetes.pods import command, environment, resources

_GROUP = "trainer.kubeflow.org"
_OF_THE_TRAINJOB = ("command", "args", "env")


def training_runtime(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    """The TrainingRuntime, of this job alone: its volumes, grace time and exit codes are in it."""
    job = job_body(spec, options, host=first_host(spec))
    pod = job["template"]["spec"]
    (node,) = pod["containers"]
    left = {name: value for name, value in node.items() if name not in _OF_THE_TRAINJOB}
    job["template"]["spec"] = {**pod, "containers": [left]}
    # By this label Trainer knows the Job that a TrainJob's trainer is put into.
    trainer = {f"{_GROUP}/trainjob-ancestor-step": "trainer"}
    return {
        "apiVersion": f"{_GROUP}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": metadata(
            spec.name,
            namespace=options.namespace,
            # Kubeflow's SDK lists no runtime that lacks it.
            labels={f"{_GROUP}/framework": "torch", **options.labels},
        ),
        "spec": {
            # No `torch` policy: torchrun is not what is started, and Trainer's PET_ variables would
            # set it up.
            "mlPolicy": {"numNodes": spec.nodes.most},
            "template": {"spec": jobset_body(spec, job, labels=trainer)},
        },
    }


def trainjob(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    """The TrainJob; its pods are reached as NAME-node-0-INDEX.NAME."""
    return {
        "apiVersion": f"{_GROUP}/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata(
            spec.name,
            namespace=options.namespace,
            labels={**queue_label(options), **options.labels},
        ),
        "spec": {
            "runtimeRef": {"apiGroup": _GROUP, "kind": "TrainingRuntime", "name": spec.name},
            "trainer": {
                "image": spec.image,
                **command(spec, first_host(spec)),
                "env": environment(spec, options),
                "numNodes": spec.nodes.most,
                "resourcesPerNode": resources(spec, options),
            },
        },
    }
