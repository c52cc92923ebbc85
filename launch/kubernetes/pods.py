"""The pod that is a node of a run: the same in a Job, a JobSet and a TrainJob."""

import math
from dataclasses import replace
from typing import Any

from distrain.errors import UsageError
from launch.job_spec import JOB_PATH, WORKSPACE, JobFile, JobSpec, Script, node_command
from launch.kubernetes.labels import own_labels
from launch.kubernetes.options import KubernetesOptions, Toleration
from launch.quantity import as_number

CONTAINER = "node"
"""The container's name; Kubeflow Trainer looks for one that is called so."""

CACHE = "/cache"
"""Where compilers and downloads keep what they may find again; the only home there is."""

NODE_RANK = "DISTRAIN_NODE_RANK"

_NODE_RANK = f"$({NODE_RANK})"
"""What the kubelet puts the node's number in for."""

_SCRATCH = "/tmp"

_MORE_GRACE_S = 30
"""After the launcher's own grace time: it kills, writes status.json, and tells the other nodes."""


def pod_template(spec: JobSpec, options: KubernetesOptions, *, host: str) -> dict[str, Any]:
    """A node's pod, for the kubelet to fill in its number.

    Args:
        spec: The job.
        options: The cluster's part of it.
        host: The first node's name, as the others reach it.
    """
    volumes, mounts = _volumes(spec)
    told = {"annotations": dict(options.annotations)} if options.annotations else {}
    return {
        "metadata": {"labels": {**own_labels(spec.name), **options.labels}, **told},
        "spec": {
            # A failed pod is replaced by another, so that podFailurePolicy has its say: a container
            # that is restarted in place never comes before it.
            "restartPolicy": "Never",
            # Nothing here asks the cluster anything: no token, and no list of its services.
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            # Longer than the launcher needs to save: the kubelet kills when this is over.
            "terminationGracePeriodSeconds": math.ceil(spec.grace_s) + _MORE_GRACE_S,
            **_placement(options),
            # Pod security level `restricted`.
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": options.user,
                "runAsGroup": options.group,
                "fsGroup": options.group,
                # Else each start walks over all files of a volume.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": CONTAINER,
                    "image": spec.image,
                    **command(spec, host),
                    "workingDir": WORKSPACE,
                    "env": environment(spec, options),
                    "resources": resources(spec, options),
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


def command(spec: JobSpec, host: str) -> dict[str, list[str]]:
    """The container's `command` and `args`; no shell reads them."""
    program = spec.program
    if isinstance(program, Script):
        arguments = tuple(literal(argument) for argument in program.arguments)
        program = Script(path=literal(program.path), arguments=arguments)
    words = node_command(replace(spec, program=program), node_rank=_NODE_RANK, host=host)
    return {"command": words[:1], "args": words[1:]}


def literal(text: str) -> str:
    """A text that the kubelet gives on as `text`: it expands $(NAME), and $$ is a dollar sign."""
    return text.replace("$", "$$")


def environment(spec: JobSpec, options: KubernetesOptions) -> list[dict[str, Any]]:
    """The container's variables; a secret's value is never among them.

    OMP_NUM_THREADS is not: the launcher sets it from the job, to whose numbers it belongs.
    """
    plain = {
        # The image can't be written to, and the user may have no home in it.
        "HOME": CACHE,
        "USER": "distrain",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/torchinductor",
    }
    if not spec.resources.gpus:
        # Where NVIDIA's runtime is the machine's default, an image that is made for GPUs else gets
        # all of them, whoever they were given to: NVIDIA/k8s-device-plugin, issue 61.
        plain["NVIDIA_VISIBLE_DEVICES"] = "void"
    rank = []
    if spec.nodes.most > 1:
        # The label of this name came with Kubernetes 1.28, the annotation has always been there.
        path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
        rank = [{"name": NODE_RANK, "valueFrom": {"fieldRef": {"fieldPath": path}}}]
        # Both would else take the first interface that they find; a node alone stays on loopback.
        plain |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), options.interface)
    secret = {each.variable for each in spec.secret_variables}
    plain = {name: value for name, value in plain.items() if name not in secret}
    plain |= {name: literal(value) for name, value in spec.environment.items()}
    return [
        *rank,
        *({"name": name, "value": value} for name, value in plain.items()),
        *(
            {
                "name": each.variable,
                "valueFrom": {"secretKeyRef": {"name": each.secret, "key": each.key}},
            }
            for each in spec.secret_variables
        ),
    ]


def resources(spec: JobSpec, options: KubernetesOptions) -> dict[str, dict[str, str]]:
    """What is asked for is the limit as well: such pods are the last to be evicted.

    Raises:
        UsageError: /dev/shm leaves no memory to the processes.
    """
    wanted = spec.resources
    if wanted.memory is not None and as_number(wanted.memory) <= as_number(wanted.shared_memory):
        raise UsageError(
            f"--memory is {wanted.memory}, and /dev/shm alone may take {wanted.shared_memory} of "
            "it: give more, or --shared-memory less"
        )
    amounts = {"cpu": wanted.cpus, "memory": wanted.memory}
    if wanted.gpus:
        amounts[options.gpu] = str(wanted.gpus)
    if options.rdma is not None:
        amounts[options.rdma] = "1"
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    return {"requests": dict(given), "limits": dict(given)}


def _placement(options: KubernetesOptions) -> dict[str, Any]:
    tolerations = [_toleration(each) for each in options.tolerations]
    placement = {
        "nodeSelector": dict(options.node_selector),
        "tolerations": tolerations,
        "priorityClassName": options.priority_class,
        "schedulerName": options.scheduler,
        "runtimeClassName": options.runtime_class,
        "serviceAccountName": options.service_account,
        "imagePullSecrets": [{"name": name} for name in options.pull_secrets],
    }
    return {name: value for name, value in placement.items() if value}


def _toleration(each: Toleration) -> dict[str, str]:
    how = {"operator": "Exists"} if each.value is None else {"operator": "Equal"}
    value = {} if each.value is None else {"value": each.value}
    effect = {} if each.effect is None else {"effect": each.effect}
    return {"key": each.key, **how, **value, **effect}


def _volumes(spec: JobSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The pod's volumes, and where its container has them."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def add(name: str, source: dict[str, Any], path: str, *, read_only: bool = False) -> None:
        mount = {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}
        found.append(({"name": name, **source}, mount))

    if isinstance(spec.program, JobFile):
        folder, _, _ = JOB_PATH.rpartition("/")
        add("job", {"configMap": {"name": spec.name}}, folder, read_only=True)
    # The node's memory, counted into the container's limit; the default is 64 MiB.
    shared = {"medium": "Memory", "sizeLimit": spec.resources.shared_memory}
    add("shared-memory", {"emptyDir": shared}, "/dev/shm")
    taken = {volume.path.rstrip("/") for volume in spec.volumes}
    for name, path in (("scratch", _SCRATCH), ("cache", CACHE)):
        if path not in taken:
            add(name, {"emptyDir": {}}, path)
    for number, volume in enumerate(spec.volumes):
        if volume.claim is None:
            size = {} if volume.size is None else {"sizeLimit": volume.size}
            add(f"empty-{number}", {"emptyDir": size}, volume.path)
        else:
            # Read-only for the mount, not for the claim: another pod may have to fill it.
            claim = {"persistentVolumeClaim": {"claimName": volume.claim}}
            add(f"claim-{number}", claim, volume.path, read_only=volume.read_only)
    for number, files in enumerate(spec.secret_files):
        source = {"secret": {"secretName": files.secret, "defaultMode": 0o440}}
        add(f"secret-{number}", source, files.path, read_only=True)
    return [volume for volume, _ in found], [mount for _, mount in found]
