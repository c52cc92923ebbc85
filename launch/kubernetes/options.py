"""What only Kubernetes has to be told of a job."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from distrain.errors import UsageError
from launch.job_spec import check_cluster_name, check_namespace, check_no_secret, check_text
from launch.kubernetes.labels import OURS, check_key, check_label, check_resource
from launch.secret_literals import secret_in

Form = Literal["job", "jobset", "trainjob"]

FORMS: tuple[Form, ...] = ("job", "jobset", "trainjob")

_INTERFACE = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,14}")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint that does not keep the pods from a machine; without a value, any of that key."""

    key: str
    value: str | None = None
    effect: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Toleration":
        """From `KEY[=VALUE][:EFFECT]`.

        Raises:
            UsageError: it is none.
        """
        rest, _, effect = text.partition(":")
        key, equals, value = rest.partition("=")
        return cls(key=key, value=value if equals else None, effect=effect or None)

    def __post_init__(self) -> None:
        """Checks the three."""
        check_label("--toleration", self.key, self.value or "")
        if self.effect is not None and self.effect not in _EFFECTS:
            raise UsageError(
                f"--toleration has the effect {self.effect!r}; there are {', '.join(_EFFECTS)}"
            )


@dataclass(frozen=True, kw_only=True)
class KubernetesOptions:
    """Where in a cluster a job runs, as what, and as whom.

    Attributes:
        form: A plain Job, a JobSet or a TrainJob.
        namespace: None for the one that the client's context names.
        interface: The pods' network interface, by which NCCL and gloo reach the others.
        queue: Kueue's, which starts the job once there is room for all of it.
        rdma: The name of the resource that gives a pod its RDMA devices; one is asked for.
        gpu: The name of the resource that `Resources.gpus` counts.
        node_selector: Labels of the machines that may be taken.
        tolerations: Taints of theirs that don't matter.
        priority_class: Of the pods.
        scheduler: Who places the pods; None for the cluster's own.
        runtime_class: What runs the containers; None for the machine's own.
        service_account: As whom the pods are known to stores of the cluster's provider. Its token
            for the API server is not given to them.
        pull_secrets: Secrets by which the image is pulled.
        labels: More labels, for all that is made.
        annotations: Of the pods.
        user: Who the processes are; never 0.
        group: Their group, also that of files on volumes.
        active_deadline_s: Seconds after which the job is ended, whatever it does.
        ttl_s: Seconds after its end in which the job can still be looked at; not of a TrainJob.
    """

    form: Form = "job"
    namespace: str | None = None
    interface: str = "eth0"
    queue: str | None = None
    rdma: str | None = None
    gpu: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class: str | None = None
    scheduler: str | None = None
    runtime_class: str | None = None
    service_account: str | None = None
    pull_secrets: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    user: int = 1000
    group: int = 1000
    active_deadline_s: int | None = None
    ttl_s: int | None = None

    def __post_init__(self) -> None:
        """Checks names and ranges.

        Raises:
            UsageError: a rule is broken; the message names what was given.
        """
        self._check_names()
        for option, labels in (("--node-selector", self.node_selector), ("--label", self.labels)):
            for key, value in labels.items():
                check_label(option, key, value)
        for key, value in self.annotations.items():
            check_key("--annotation", key)
            check_text(f"--annotation {key}", value)
            check_no_secret(f"--annotation {key}", secret_in(value, key.rpartition("/")[2]))
        for key in self.labels:
            if key in OURS:
                raise UsageError(f"--label {key} is one that distrain sets; leave it out")
        if self.form == "trainjob" and self.ttl_s is not None:
            raise UsageError(
                "--ttl is for a Job and a JobSet: of a TrainJob it would remove the JobSet, which "
                "Trainer makes anew where the job has failed. Leave it out, and cancel the job"
            )
        for option, number, least in (
            ("the user", self.user, 1),
            ("the group", self.group, 1),
            ("--active-deadline", self.active_deadline_s, 1),
            ("--ttl", self.ttl_s, 0),
        ):
            if number is not None and not least <= number < 1 << 31:
                raise UsageError(f"{option} is {number}; give {least} or more, below 2^31")

    def _check_names(self) -> None:
        if self.namespace is not None:
            check_namespace("--namespace", self.namespace)
        if not _INTERFACE.fullmatch(self.interface):
            raise UsageError(
                f"--interface is {self.interface[:80]!r}; give the name of the pods' network "
                "interface, such as eth0"
            )
        for kind, name in (
            ("a queue", self.queue),
            ("a priority class", self.priority_class),
            ("a scheduler", self.scheduler),
            ("a runtime class", self.runtime_class),
            ("a service account", self.service_account),
            *(("a pull secret", secret) for secret in self.pull_secrets),
        ):
            if name is not None:
                check_cluster_name(kind, name)
        for option, resource in (("--rdma", self.rdma), ("--gpu-resource", self.gpu)):
            if resource is not None:
                check_resource(option, resource)
