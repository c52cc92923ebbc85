"""What an API server, its `restricted` admission and a kubelet refuse of a pod's template."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.quantity import as_number

_REFERENCE = re.compile(r"\$\$|\$\(([^)]*)\)")
_NO_HOST = ("hostNetwork", "hostPID", "hostIPC")
_SAFE_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}


def broken_by_pod(template: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a pod's template, in words."""
    pod = template["spec"]
    volumes = [volume["name"] for volume in pod.get("volumes", ())]
    yield from _twice("the volume", volumes)
    if pod.get("terminationGracePeriodSeconds", 1) < 1:
        yield "terminationGracePeriodSeconds leaves no time to save"
    for container in pod["containers"]:
        mounts = container.get("volumeMounts", ())
        yield from _twice("the path", [mount["mountPath"].rstrip("/") for mount in mounts])
        for mount in mounts:
            if mount["name"] not in volumes:
                yield f"{mount['mountPath']} is of a volume {mount['name']} that is not there"
        yield from _broken_by_resources(container.get("resources", {}))
        yield from broken_by_references(container)
    yield from _not_restricted(pod)


def broken_by_references(container: Mapping[str, Any]) -> Iterator[str]:
    """A `$(NAME)` that names nothing stays as it is, for the program to stumble over."""
    known: list[str] = []
    for variable in container.get("env", ()):
        yield from _unknown(variable["name"], variable.get("value", ""), known)
        known.append(variable["name"])
    yield from _twice("the variable", known)
    for word in (*container.get("command", ()), *container.get("args", ())):
        yield from _unknown("an argument", word, known)


def _unknown(where: str, text: str, known: Sequence[str]) -> Iterator[str]:
    for found in _REFERENCE.finditer(text):
        if found[1] is not None and found[1] not in known:
            yield f"{where} refers to {found[0]}, which is no variable before it"


def _broken_by_resources(resources: Mapping[str, Any]) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name, amount in requests.items():
        if name in limits and as_number(amount) > as_number(limits[name]):
            yield f"{name}: {amount} is asked for, above the limit of {limits[name]}"
    for name in {*requests, *limits}:
        if "/" in name:
            amounts = {limits.get(name), requests.get(name, limits.get(name))}
            if len(amounts) > 1 or not str(limits.get(name)).isdecimal():
                yield f"{name} is a device: a whole number, the same in requests and limits"


def _not_restricted(pod: Mapping[str, Any]) -> Iterator[str]:
    """The rules of the Pod Security Standard `restricted` that bear on what we render."""
    for name in _NO_HOST:
        if pod.get(name):
            yield f"{name} is not `restricted`"
    for volume in pod.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= _SAFE_VOLUMES:
            yield f"the volume {volume['name']} is a {', '.join(kinds)}, which is not `restricted`"
    for container in pod["containers"]:
        # A container's word counts before the pod's.
        own = container.get("securityContext", {})
        yield from _not_restricted_container({**pod.get("securityContext", {}), **own})


def _not_restricted_container(context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        yield "the container may run as root"
    if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "the container has no seccomp profile"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "the container may gain privileges"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or capabilities.get("add"):
        yield "the container keeps or adds capabilities"
    if context.get("privileged"):
        yield "the container is privileged"


def _twice(what: str, names: Sequence[str]) -> Iterator[str]:
    for name in sorted(set(names)):
        if names.count(name) > 1:
            yield f"{what} {name} is there twice"
