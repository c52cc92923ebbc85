"""The kinds of objects that a job on Kubernetes is made of, and where the API server keeps them."""

from dataclasses import dataclass
from typing import Any

from distrain.errors import UsageError
from launch.kubernetes.labels import PROGRAM, own_labels

NODE_LABEL = "batch.kubernetes.io/job-completion-index"
"""A pod's number in its Indexed Job: the node's."""


@dataclass(frozen=True)
class Kind:
    """A kind of object.

    Attributes:
        name: As manifests give it.
        api_version: Its group and version.
        plural: As it stands in addresses and in RBAC rules.
    """

    name: str
    api_version: str
    plural: str

    @property
    def group(self) -> str:
        """Its API group; empty for the core's."""
        return self.api_version.rpartition("/")[0]

    @property
    def full_name(self) -> str:
        """As `kubectl` and RBAC rules name it, such as `jobs.batch`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def is_custom(self) -> bool:
        """Whether it has to be installed in a cluster."""
        return "." in self.group and self.group != "networking.k8s.io"

    @property
    def root(self) -> str:
        """The address that says what the group's version has."""
        return f"/{'apis' if self.group else 'api'}/{self.api_version}"

    def path(self, namespace: str, name: str | None = None) -> str:
        """The address of an object, or of all in a namespace."""
        all_of_them = f"{self.root}/namespaces/{namespace}/{self.plural}"
        return all_of_them if name is None else f"{all_of_them}/{name}"


POD = Kind("Pod", "v1", "pods")
EVENT = Kind("Event", "v1", "events")
JOB = Kind("Job", "batch/v1", "jobs")
JOB_SET = Kind("JobSet", "jobset.x-k8s.io/v1alpha2", "jobsets")
TRAIN_JOB = Kind("TrainJob", "trainer.kubeflow.org/v1alpha1", "trainjobs")

CONFIG_MAP = Kind("ConfigMap", "v1", "configmaps")
SERVICE = Kind("Service", "v1", "services")
NETWORK_POLICY = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
RUNTIME = Kind("TrainingRuntime", "trainer.kubeflow.org/v1alpha1", "trainingruntimes")

TOPS = (TRAIN_JOB, JOB_SET, JOB)
"""What a job is, by its form. A TrainJob makes a JobSet of its name, which makes Jobs."""

PARTS = (CONFIG_MAP, SERVICE, NETWORK_POLICY, RUNTIME)
"""What a job's pods need beside it."""

_KINDS = {(kind.api_version, kind.name): kind for kind in (*TOPS, *PARTS)}


def kind_of(manifest: dict[str, Any]) -> Kind:
    """A manifest's kind.

    Raises:
        UsageError: it is none of those above.
    """
    given = manifest.get("apiVersion", ""), manifest.get("kind", "")
    if given not in _KINDS:
        known = ", ".join(kind.name for kind in (*TOPS, *PARTS))
        raise UsageError(f"a manifest is of kind {given[1]} ({given[0]}); known are {known}")
    return _KINDS[given]


SELECTOR = f"{PROGRAM}=distrain"
"""The label selector of all that belongs to any job."""


def selector_of(name: str) -> str:
    """The label selector of all that belongs to the job of this name."""
    return ",".join(f"{key}={value}" for key, value in own_labels(name).items())


def is_ours(found: dict[str, Any]) -> bool:
    """Whether an object was made for a job of distrain's."""
    metadata = found["metadata"]
    return bool(own_labels(metadata["name"]).items() <= metadata.get("labels", {}).items())


def is_made_by_another(found: dict[str, Any]) -> bool:
    """Whether an object was made by one above it, as the JobSet of a TrainJob is."""
    owners = found["metadata"].get("ownerReferences", ())
    return any(owner.get("controller") for owner in owners)
