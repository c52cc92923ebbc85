"""Who finds a job's pods, and who may speak to them."""

from typing import Any

from launch.job_spec import PORT, JobSpec
from launch.kubernetes.labels import metadata, own_labels
from launch.kubernetes.options import KubernetesOptions


def headless_service(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    """What gives each pod of a Job a name: POD.SERVICE, its own address behind it."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(spec.name, namespace=options.namespace, labels=options.labels),
        "spec": {
            "clusterIP": "None",
            # The pods meet before any of them could call itself ready.
            "publishNotReadyAddresses": True,
            "selector": own_labels(spec.name),
            "ports": [{"name": "rendezvous", "port": PORT, "protocol": "TCP"}],
        },
    }


def network_policy(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    """Lets a job's own pods alone reach its ports; a single pod's nobody.

    All ports, since gloo and NCCL listen on any that is free. Torch's rendezvous store knows no
    password, so this is what keeps others out of it. What the pods may reach is left to the
    cluster: names, stores and claims are its own affair.
    """
    own = [{"from": [{"podSelector": {"matchLabels": own_labels(spec.name)}}]}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(spec.name, namespace=options.namespace, labels=options.labels),
        "spec": {
            "podSelector": {"matchLabels": own_labels(spec.name)},
            "policyTypes": ["Ingress"],
            "ingress": own if spec.nodes.most > 1 else [],
        },
    }
