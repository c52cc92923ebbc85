"""Names that Kubernetes' objects carry: what belongs to a job is found by them."""

import re
from collections.abc import Mapping
from typing import Any

from distrain.errors import UsageError
from launch.job_spec import check_cluster_name

PROGRAM = "app.kubernetes.io/name"
JOB = "app.kubernetes.io/instance"
MADE_BY = "app.kubernetes.io/managed-by"

QUEUE = "kueue.x-k8s.io/queue-name"

OURS = (PROGRAM, JOB, MADE_BY, QUEUE)

_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def own_labels(name: str) -> dict[str, str]:
    """What marks all that is made for a job; pods are chosen by them."""
    return {PROGRAM: "distrain", JOB: name}


def metadata(
    name: str, *, namespace: str | None, labels: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """An object's name and labels."""
    place = {} if namespace is None else {"namespace": namespace}
    made_by = {MADE_BY: "distrain"}
    return {"name": name, **place, "labels": {**own_labels(name), **made_by, **labels}, **more}


def check_key(option: str, key: str) -> None:
    """Refuses what can be no label's or annotation's name.

    Raises:
        UsageError: it can't.
    """
    prefix, slash, name = key.rpartition("/")
    if slash:
        check_cluster_name(f"{option}: the part before the slash", prefix)
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{option} names {key[:80]!r}; give NAME or DOMAIN/NAME, the name at most 63 letters, "
            "digits, '-', '_' and '.', first and last a letter or digit"
        )


def check_label(option: str, key: str, value: str) -> None:
    """Refuses what can be no label.

    Raises:
        UsageError: the key or the value isn't one.
    """
    check_key(option, key)
    if value and not _NAME.fullmatch(value):
        raise UsageError(
            f"{option} gives {key} the value {value[:80]!r}; at most 63 letters, digits, '-', '_' "
            "and '.', first and last a letter or digit"
        )


def check_resource(option: str, name: str) -> None:
    """Refuses what can name no device of a machine.

    Raises:
        UsageError: it can't.
    """
    check_key(option, name)
    if "/" not in name:
        raise UsageError(f"{option} is {name!r}; give DOMAIN/NAME, such as nvidia.com/gpu")
