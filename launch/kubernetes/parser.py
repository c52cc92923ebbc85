"""What `distrain submit kubernetes` takes on its command line."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from distrain import __version__
from distrain.errors import UsageError
from launch.commands.submit_parser import add_shared, described
from launch.job_spec import WORKSPACE, JobSpec, SecretFiles, SecretVariable, Volume
from launch.kubernetes.connection import add_connection, add_following
from launch.kubernetes.options import FORMS, Form, KubernetesOptions, Toleration
from launch.kubernetes.pods import CACHE

IMAGE = f"distrain:{__version__}"
"""What k8s/README.md has one build."""

DATA, RUNS = "distrain-shards", "distrain-runs"
"""The claims that k8s/base makes."""

_NONE = "none"


def add_kubernetes(parser: argparse.ArgumentParser) -> None:
    """Adds what there is to say of the cluster, beside the job itself."""
    parser.description = (
        "Runs a job on a Kubernetes cluster. k8s/README.md leads from an empty cluster to a "
        "finished job."
    )
    groups = add_shared(parser, "kubernetes")
    add = parser.add_argument
    add("--image", default=IMAGE, help=f"REGISTRY/NAME@sha256:DIGEST ({IMAGE})")
    add(
        "--form",
        choices=("auto", *FORMS),
        default="auto",
        help="job: needs no operator; jobset: kubernetes-sigs/jobset; trainjob: Kubeflow Trainer; "
        "auto: jobset where that is installed, else job (auto)",
    )
    add("--follow", "-f", action="store_true", help="show logs and events to the job's end")
    groups.machines.add_argument(
        "--shared-memory", default="2Gi", metavar="SIZE", help="/dev/shm, part of --memory (2Gi)"
    )
    ends = groups.restarts.add_argument
    ends("--node-retries", type=int, default=10, metavar="N", help="how often a node may fail (10)")
    ends("--active-deadline", type=int, metavar="SECONDS", help="after which the job is ended")
    ends("--ttl", type=int, metavar="SECONDS", help="after its end, until the job is forgotten")
    _add_storage(parser)
    _add_placement(parser)
    add_connection(parser)
    add_following(parser)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "disks and secrets", "--volume, --secret and --secret-files may be given several times."
    ).add_argument
    add("--data", default=DATA, metavar="CLAIM", help=f"at {WORKSPACE}/shards; or {_NONE} ({DATA})")
    add("--runs", default=RUNS, metavar="CLAIM", help=f"at {WORKSPACE}/runs; or {_NONE} ({RUNS})")
    add("--volume", action="append", default=[], metavar="CLAIM:PATH[:ro]", help="one more")
    add("--cache", metavar="SIZE", help=f"the most that {CACHE} may take on a machine's disk")
    add(
        "--secret",
        action="append",
        default=[],
        metavar="VARIABLE=SECRET/KEY",
        help="an environment variable whose value the cluster keeps",
    )
    add(
        "--secret-files",
        action="append",
        default=[],
        metavar="SECRET:PATH",
        help="a secret as files, one a key",
    )


def _add_placement(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "where its pods run, and as whom",
        "What takes KEY or SECRET may be given several times.",
    ).add_argument
    add("--queue", metavar="NAME", help="Kueue's, which starts the job when there is room")
    add("--priority-class", metavar="NAME", help="of the pods")
    add("--node-selector", action="append", default=[], metavar="KEY=VALUE", help="of machines")
    add(
        "--toleration",
        action="append",
        default=[],
        metavar="KEY[=VALUE][:EFFECT]",
        help="their taint that does not matter",
    )
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="for all that is made")
    add("--annotation", action="append", default=[], metavar="KEY=VALUE", help="of the pods")
    add("--scheduler", metavar="NAME", help="who places the pods (the cluster's own)")
    add("--runtime-class", metavar="NAME", help="such as nvidia, where the machines need it")
    add("--service-account", metavar="NAME", help="as whom the pods ask stores of the cloud")
    add("--pull-secret", action="append", default=[], metavar="SECRET", help="for the image")
    add("--user", default="1000", metavar="UID[:GID]", help="never 0 (1000)")
    add("--interface", default="eth0", metavar="NAME", help="the pods' network interface (eth0)")
    add(
        "--gpu-resource",
        default="nvidia.com/gpu",
        metavar="NAME",
        help="what --gpus counts (nvidia.com/gpu)",
    )
    add("--rdma", metavar="RESOURCE", help="RDMA devices, such as rdma/hca_shared_devices_a")


def job_spec(known: argparse.Namespace, overrides: Sequence[str], script: Sequence[str]) -> JobSpec:
    """The job's description.

    Raises:
        UsageError, ConfigError: it can't be run as described.
    """
    spec = described(
        known,
        overrides,
        script,
        image=known.image,
        node_retries=known.node_retries,
        secret_variables=tuple(_secret_variable(text) for text in known.secret),
        secret_files=tuple(
            SecretFiles(secret=secret, path=path)
            for secret, path in (
                _pair("--secret-files", text, ":", "SECRET:PATH") for text in known.secret_files
            )
        ),
        volumes=_volumes(known),
    )
    resources = replace(spec.resources, shared_memory=known.shared_memory)
    return replace(spec, resources=resources)


def options(known: argparse.Namespace, form: Form) -> KubernetesOptions:
    """What is said of the cluster.

    Raises:
        UsageError: a name or a number is none.
    """
    user, _, group = known.user.partition(":")
    return KubernetesOptions(
        form=form,
        namespace=known.namespace,
        interface=known.interface,
        queue=known.queue,
        rdma=known.rdma,
        gpu=known.gpu_resource,
        node_selector=_pairs("--node-selector", known.node_selector),
        tolerations=tuple(Toleration.parse(text) for text in known.toleration),
        priority_class=known.priority_class,
        scheduler=known.scheduler,
        runtime_class=known.runtime_class,
        service_account=known.service_account,
        pull_secrets=tuple(known.pull_secret),
        labels=_pairs("--label", known.label),
        annotations=_pairs("--annotation", known.annotation),
        user=_number("--user", user),
        group=_number("--user", group or user),
        active_deadline_s=known.active_deadline,
        ttl_s=known.ttl,
    )


def _volumes(known: argparse.Namespace) -> tuple[Volume, ...]:
    found = []
    if known.data != _NONE:
        found.append(Volume(claim=known.data, path=f"{WORKSPACE}/shards", read_only=True))
    if known.runs != _NONE:
        found.append(Volume(claim=known.runs, path=f"{WORKSPACE}/runs"))
    if known.cache is not None:
        found.append(Volume(claim=None, path=CACHE, size=known.cache))
    for text in known.volume:
        claim, rest = _pair("--volume", text, ":", "CLAIM:PATH or CLAIM:PATH:ro")
        path, colon, how = rest.partition(":")
        if colon and how != "ro":
            raise UsageError(f"--volume is {text!r}; behind the path there may be :ro alone")
        found.append(Volume(claim=claim, path=path, read_only=bool(colon)))
    return tuple(found)


def _secret_variable(text: str) -> SecretVariable:
    variable, place = _pair("--secret", text, "=", "VARIABLE=SECRET/KEY")
    secret, slash, key = place.partition("/")
    if not slash:  # and it may be the secret itself, which nobody else should read
        raise UsageError(
            f"--secret {variable} names no key of a secret; give VARIABLE=SECRET/KEY, as in "
            f"{variable}=NAME/KEY for what `kubectl create secret generic NAME "
            "--from-literal=KEY=...` has made"
        )
    return SecretVariable(variable=variable, secret=secret, key=key)


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        key, value = _pair(option, text, "=", "KEY=VALUE")
        if key in found:
            raise UsageError(f"{option} gives {key} twice")
        found[key] = value
    return found


def _pair(option: str, text: str, between: str, form: str) -> tuple[str, str]:
    first, found, second = text.partition(between)
    if not found:
        raise UsageError(f"{option} is {text!r}; give {form}")
    return first, second


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 10:
        raise UsageError(f"{option} is {text[:80]!r}; give UID or UID:GID, as numbers")
    return int(text)
