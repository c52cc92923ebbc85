"""A plain Indexed Job: each of its pods has a number and a name, and no operator is needed."""

from typing import Any

from distrain.errors import ExitCode
from launch.job_spec import JobSpec
from launch.kubernetes.labels import QUEUE, metadata
from launch.kubernetes.options import KubernetesOptions
from launch.kubernetes.pods import CONTAINER, pod_template


def indexed_job(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    """The Job; its pods are reached as NAME-INDEX.NAME through the Service of its name."""
    body = job_body(spec, options, host=f"{spec.name}-0.{spec.name}")
    if spec.nodes.most > 1:
        body["template"]["spec"]["subdomain"] = spec.name
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(
            spec.name,
            namespace=options.namespace,
            labels={**queue_label(options), **options.labels},
            **_partial_admission(spec, options),
        ),
        "spec": body | forgotten_after(options),
    }


def job_body(spec: JobSpec, options: KubernetesOptions, *, host: str) -> dict[str, Any]:
    """A Job's `spec`, as JobSet and Trainer take it into theirs.

    Args:
        spec: The job.
        options: The cluster's part of it.
        host: The first node's name, as the others reach it.
    """
    several: dict[str, Any] = {}
    if spec.nodes.most > 1:
        # Rank 0 is on node 0 and writes the result: when that has ended well, so has the run. A
        # node that comes only then would wait for the others in vain.
        several["successPolicy"] = {"rules": [{"succeededIndexes": "0", "succeededCount": 1}]}
    limit = options.active_deadline_s
    return {
        **({} if limit is None else {"activeDeadlineSeconds": limit}),
        "completionMode": "Indexed",
        # Of nodes MIN:MAX all MAX are asked for; the run begins with MIN of them.
        "completions": spec.nodes.most,
        "parallelism": spec.nodes.most,
        # Of each node by itself, what no rule below takes up: where one is lost, all others may end
        # with 69, and a limit for all together would be used up by a single loss. One node that has
        # used up its own ends the job.
        "backoffLimitPerIndex": spec.node_retries,
        "maxFailedIndexes": 0,
        # A new pod only once the old one is gone: two of one number would be two writers.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": _failure_rules(spec)},
        **several,
        "template": pod_template(spec, options, host=host),
    }


def _failure_rules(spec: JobSpec) -> list[dict[str, Any]]:
    """The first rule that fits counts."""

    def on(codes: list[int], action: str) -> dict[str, Any]:
        told = {"containerName": CONTAINER, "operator": "In", "values": codes}
        return {"action": action, "onExitCodes": told}

    # First, since a pod that is being evicted may exit with any code: it is none of its own.
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    rules: list[dict[str, Any]] = [{"action": "Ignore", "onPodConditions": disrupted}]
    if spec.fatal_codes:
        rules.append(on(list(spec.fatal_codes), "FailJob"))
    if ExitCode.STOPPED in spec.retried:
        # Everything is saved: to be run again, as often as that happens.
        rules.append(on([int(ExitCode.STOPPED)], "Ignore"))
    return rules


def forgotten_after(options: KubernetesOptions) -> dict[str, int]:
    """When a Job, or a JobSet, is removed by the cluster."""
    return {} if options.ttl_s is None else {"ttlSecondsAfterFinished": options.ttl_s}


def queue_label(options: KubernetesOptions) -> dict[str, str]:
    """Kueue's webhook suspends what carries it, until there is room."""
    return {} if options.queue is None else {QUEUE: options.queue}


def _partial_admission(spec: JobSpec, options: KubernetesOptions) -> dict[str, Any]:
    """Kueue may start a Job with fewer pods than it asks for, from MIN on."""
    if options.queue is None or not spec.nodes.is_elastic:
        return {}
    told = {
        "kueue.x-k8s.io/job-min-parallelism": str(spec.nodes.least),
        "kueue.x-k8s.io/job-completions-equal-parallelism": "true",
    }
    return {"annotations": told}
