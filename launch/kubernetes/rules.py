"""What is refused beyond the schemas: by the API server, by JobSet's and Trainer's webhooks.

And what all of them would take, though the pods would then not find each other.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.kubernetes.job_rules import broken_by_job
from launch.kubernetes.pod_rules import broken_by_references

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_KEY = re.compile(r"([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[A-Za-z0-9][-A-Za-z0-9_.]{0,62}")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_RULE_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")
_REASONS = {
    *("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes"),
    *("MaxFailedIndexesExceeded", "PodFailurePolicy"),
}
_MOST_BYTES = 1 << 20
_SUFFIX = "-abcde"
"""What a pod's name has behind that of its host."""

_ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"


def broken(manifests: Sequence[Mapping[str, Any]]) -> list[str]:
    """All that would be refused, each with its object; none where all is well."""
    found = []
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        by_kind = _BY_KIND.get(manifest["kind"], _nothing)
        for text in (*_broken_by_metadata(manifest["metadata"]), *by_kind(name, manifest)):
            found.append(f"{manifest['kind']} {name}: {text}")
    return [*found, *_unmatched(manifests)]


def _broken_by_metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    if not _DNS_1035.fullmatch(metadata["name"]):
        yield "a name has at most 63 of a-z, 0-9 and '-', the first a letter, the last no '-'"
    for key, value in metadata.get("labels", {}).items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            yield f"{key}={value} is no label"


def _nothing(_: str, __: Mapping[str, Any]) -> Iterator[str]:
    yield from ()


def _by_config_map(_: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    size = sum(len(text.encode()) for text in manifest["data"].values())
    if size > _MOST_BYTES:
        yield f"the job is {size:,} bytes long, and a ConfigMap holds {_MOST_BYTES:,}"


def _by_service(_: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    spec = manifest["spec"]
    if spec.get("clusterIP") != "None":
        yield "pods have names of their own only where clusterIP is None"
    if not spec.get("publishNotReadyAddresses"):
        yield "without publishNotReadyAddresses the pods don't find each other at the start"


def _by_job(name: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    yield from broken_by_job(name, manifest["spec"])


def _by_jobset(name: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    yield from _by_jobset_spec(name, manifest["spec"])


def _by_runtime(name: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    spec = manifest["spec"]["template"]["spec"]
    yield from _by_jobset_spec(name, spec)
    trained = [
        job
        for job in spec["replicatedJobs"]
        if job["template"].get("metadata", {}).get("labels", {}).get(_ANCESTOR) == "trainer"
    ]
    if len(trained) != 1 or trained[0].get("replicas", 1) != 1:
        yield f"one Job, once, is marked {_ANCESTOR}=trainer"
    for job in trained:
        containers = job["template"]["spec"]["template"]["spec"]["containers"]
        if "node" not in [container["name"] for container in containers]:
            yield "Trainer looks for a container that is called node"


def _by_jobset_spec(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    subdomain = spec.get("network", {}).get("subdomain", name)
    if not _DNS_1035.fullmatch(subdomain):
        yield f"the subdomain {subdomain} could be no Service"
    for job in spec["replicatedJobs"]:
        called = f"{name}-{job['name']}-{job.get('replicas', 1) - 1}"
        body = job["template"]["spec"]
        longest = f"{called}-{body.get('completions', 1) - 1}{_SUFFIX}"
        if not _DNS_1035.fullmatch(longest):
            yield f"its last pod would be called {longest}, of more than 63 signs"
        yield from broken_by_job(called, body)
    rules = spec.get("failurePolicy", {}).get("rules", ())
    names = [rule["name"] for rule in rules]
    if len(set(names)) < len(names) or not all(map(_RULE_NAME.fullmatch, names)):
        yield f"failurePolicy: the rules are called {names}: each by a name of its own"
    for reason in {reason for rule in rules for reason in rule.get("onJobFailureReasons", ())}:
        if reason not in _REASONS:
            yield f"failurePolicy: a Job does not fail by {reason}"


def _by_trainjob(_: str, manifest: Mapping[str, Any]) -> Iterator[str]:
    trainer = manifest["spec"]["trainer"]
    yield from broken_by_references(trainer)
    if "numProcPerNode" in trainer:
        yield "numProcPerNode is for runtimes that start torchrun"


_BY_KIND = {
    "ConfigMap": _by_config_map,
    "Service": _by_service,
    "Job": _by_job,
    "JobSet": _by_jobset,
    "TrainingRuntime": _by_runtime,
    "TrainJob": _by_trainjob,
}


def _unmatched(manifests: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What refers to another object that is not there."""
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "TrainJob":
            runtime = spec["runtimeRef"]["name"]
            if ("TrainingRuntime", runtime) not in names:
                yield f"TrainJob: there is no TrainingRuntime {runtime}"
        if manifest["kind"] == "Job":
            service = spec["template"]["spec"].get("subdomain")
            if service is not None and ("Service", service) not in names:
                yield f"Job: its subdomain {service} is no Service's name"
