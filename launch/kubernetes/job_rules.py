"""What an API server refuses of a Job beyond its schema: kubernetes/pkg/apis/batch/validation."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from launch.kubernetes.pod_rules import broken_by_pod

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_INDEXES = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*")
_ACTIONS = ("Count", "FailIndex", "FailJob", "Ignore")
_NOT_NEGATIVE = (
    *("activeDeadlineSeconds", "backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes"),
    "ttlSecondsAfterFinished",
)
_MOST_RULES, _MOST_CODES = 20, 255


def broken_by_job(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a Job's `spec`, in words.

    Args:
        name: The Job's; its pods are called NAME-INDEX.
        spec: With its pod's template.
    """
    template = spec["template"]
    restart = template["spec"].get("restartPolicy")
    if restart not in ("Never", "OnFailure"):
        yield "restartPolicy: a Job's pods have Never or OnFailure"
    for field in _NOT_NEGATIVE:
        if spec.get(field, 0) < 0:
            yield f"{field} is below 0"
    if "maxFailedIndexes" in spec and "backoffLimitPerIndex" not in spec:
        yield "maxFailedIndexes: only with backoffLimitPerIndex"
    if "podFailurePolicy" in spec:
        if restart != "Never":
            yield "restartPolicy: only Never goes with podFailurePolicy"
        if spec.get("podReplacementPolicy", "Failed") != "Failed":
            yield "podReplacementPolicy: only Failed goes with podFailurePolicy"
        yield from _broken_by_failure_policy(spec)
    yield from _broken_by_indexes(name, spec)
    yield from broken_by_pod(template)


def _broken_by_indexes(name: str, spec: Mapping[str, Any]) -> Iterator[str]:
    completions = spec.get("completions")
    if spec.get("completionMode") != "Indexed":
        for field in ("successPolicy", "backoffLimitPerIndex"):
            if field in spec:
                yield f"{field}: only where completionMode is Indexed"
        return
    if completions is None:
        yield "completions: needed where completionMode is Indexed"
        return
    last = f"{name}-{completions - 1}"
    if not _LABEL.fullmatch(last):
        yield f"the pod {last} could have no host name: at most 63 of a-z, 0-9 and '-'"
    for rule in spec.get("successPolicy", {}).get("rules", ()):
        told = rule.get("succeededIndexes", "")
        if told and not _INDEXES.fullmatch(told):
            yield f"succeededIndexes is {told}: numbers and ranges, as in 0,2-4"
        elif told and max(map(int, re.findall("[0-9]+", told))) >= completions:
            yield f"succeededIndexes is {told}, and the last index {completions - 1}"
        if rule.get("succeededCount", 0) > completions:
            yield f"succeededCount is {rule['succeededCount']}, of {completions} indexes"


def _broken_by_failure_policy(spec: Mapping[str, Any]) -> Iterator[str]:
    rules = spec["podFailurePolicy"]["rules"]
    containers = [container["name"] for container in spec["template"]["spec"]["containers"]]
    if len(rules) > _MOST_RULES:
        yield f"podFailurePolicy has {len(rules)} rules; {_MOST_RULES} at most"
    for rule in rules:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if rule["action"] not in _ACTIONS:
            yield f"podFailurePolicy: the action is {rule['action']}; there are {_ACTIONS}"
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield "podFailurePolicy: FailIndex needs backoffLimitPerIndex"
        if (codes is None) == (not conditions):
            yield "podFailurePolicy: a rule has either exit codes or conditions"
        if codes is not None:
            yield from _broken_by_codes(codes, containers)


def _broken_by_codes(codes: Mapping[str, Any], containers: list[str]) -> Iterator[str]:
    values = codes["values"]
    if not 1 <= len(values) <= _MOST_CODES or values != sorted(set(values)):
        yield f"podFailurePolicy: the exit codes are {values}; 1 to 255, each once, in order"
    if codes["operator"] == "In" and 0 in values:
        yield "podFailurePolicy: 0 is no failure"
    if codes.get("containerName", containers[0]) not in containers:
        yield f"podFailurePolicy: there is no container {codes['containerName']}"
