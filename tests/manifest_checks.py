"""Manifests held against what others have published of Kubernetes' objects."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from os import environ
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.conftest import ROOT

VERSIONS = ("1.33", "1.37")
"""Kubernetes' that core kinds are held against; 1.33 is the oldest that knows all we use."""

CUSTOM = {
    "JobSet": "jobset.x-k8s.io_jobsets.yaml",
    "TrainJob": "trainer.kubeflow.org_trainjobs.yaml",
    "TrainingRuntime": "trainer.kubeflow.org_trainingruntimes.yaml",
}


def check(manifest: Mapping[str, Any]) -> None:
    """Fails where an object has an unknown field, lacks one, or has one of a wrong type."""
    if manifest["kind"] in CUSTOM:
        jsonschema.Draft202012Validator(schema(manifest["kind"])).validate(manifest)
        # Of its metadata a custom resource's schema says nothing: it is that of all objects.
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}
    for version in VERSIONS:
        kubernetes_validate.validate(dict(manifest), version, strict=True)


@cache
def schema(kind: str) -> dict[str, Any]:
    """The schema of a custom resource, unknown fields refused."""
    folder = Path(environ.get("DISTRAIN_SCHEMAS", ROOT.parent / "shared" / "schemas"))
    file = folder / CUSTOM[kind]
    if not file.is_file():
        pytest.skip(f"there is no {file}: DISTRAIN_SCHEMAS names the folder that has the schemas")
    described = yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert described["spec"]["names"]["kind"] == kind
    (version,) = (each for each in described["spec"]["versions"] if each["served"])
    assert isinstance(version["schema"]["openAPIV3Schema"], dict)
    return strict(version["schema"]["openAPIV3Schema"])


def strict(described: dict[str, Any]) -> dict[str, Any]:
    """A schema of a custom resource as the API server takes it, and unknown fields refused.

    `x-kubernetes-int-or-string` is its word for what JSON Schema calls two types.
    """
    found = deepcopy(described)
    if "properties" in found and not found.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    for name in ("properties", "patternProperties"):
        if name in found:
            found[name] = {key: strict(inner) for key, inner in found[name].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(found.get(name), dict):
            found[name] = strict(found[name])
    if found.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    return found
