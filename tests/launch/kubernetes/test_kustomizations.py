"""What stands in `k8s/` besides recorded jobs: what they need, and what builds upon it."""

import shutil
import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.kubernetes.parser import DATA, IMAGE, RUNS
from launch.kubernetes.pod_rules import broken_by_pod
from launch.kubernetes.rules import broken
from launch.kubernetes.yaml_text import as_yaml
from tests.conftest import ROOT, TIMEOUT_S
from tests.manifest_checks import check
from tests.rendered import rendered, script_spec

K8S = ROOT / "k8s"
FOLDERS = sorted(path.parent for path in K8S.glob("*/kustomization.yaml"))
PLAIN = [folder for folder in FOLDERS if folder.name != "rdma"]
RDMA = "rdma/hca_shared_devices_a"

Manifest = dict[str, Any]


def resources(folder: Path) -> list[Manifest]:
    """What a kustomization names."""
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return [
        manifest
        for name in told["resources"]
        for manifest in yaml.safe_load_all((folder / name).read_text())
    ]


def kustomized(folder: Path) -> list[Manifest]:
    """What kubectl makes of it."""
    return list(yaml.safe_load_all(kustomized_text(folder)))


def kustomized_text(folder: Path) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl here to build kustomizations with")
    done = subprocess.run(
        [kubectl, "kustomize", folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def patched(manifest: Manifest, operations: list[Manifest]) -> Manifest:
    """JSON Patch (RFC 6902), as far as it is used here."""
    found = deepcopy(manifest)
    for operation in operations:
        assert operation["op"] == "add"
        *within, last = (
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"][1:].split("/")
        )
        target: Any = found
        for part in within:
            target = target[int(part) if isinstance(target, list) else part]
        target[last] = operation["value"]
    return found


def test_there_are_these() -> None:
    assert {folder.name for folder in FOLDERS} == {
        *("base", "data", "job", "jobset", "rdma", "shell", "trainjob")
    }


@pytest.mark.parametrize("folder", PLAIN, ids=lambda folder: folder.name)
def test_every_file_is_named_and_every_object_valid(folder: Path) -> None:
    told = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert told["kind"] == "Kustomization"
    assert told["namespace"] == "distrain"
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(told["resources"]) == files
    found = resources(folder)
    for manifest in found:
        check(manifest)
    assert broken(found) == []


@pytest.mark.parametrize("folder", PLAIN, ids=lambda folder: folder.name)
def test_kubectl_builds_it_and_adds_nothing_but_the_namespace(folder: Path) -> None:
    def by_name(manifests: list[Manifest]) -> dict[tuple[str, str], Manifest]:
        return {(each["kind"], each["metadata"]["name"]): each for each in manifests}

    expected = resources(folder)
    for manifest in expected:
        if manifest["kind"] != "Namespace":
            manifest["metadata"]["namespace"] = "distrain"
    assert by_name(kustomized(folder)) == by_name(expected)


def test_the_base_has_what_jobs_ask_for_unless_told_otherwise() -> None:
    by_kind: dict[str, list[Manifest]] = {}
    for manifest in resources(K8S / "base"):
        by_kind.setdefault(manifest["kind"], []).append(manifest)
    claims = [claim["metadata"]["name"] for claim in by_kind["PersistentVolumeClaim"]]
    assert claims == [DATA, RUNS]
    (namespace,) = by_kind["Namespace"]
    level = namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
    assert level == "restricted"
    (policy,) = by_kind["NetworkPolicy"]
    assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_data_is_made_with_the_same_image_on_the_claim_that_jobs_read() -> None:
    (job,) = resources(K8S / "data")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]]
    assert DATA in claims
    digits = rendered("job")["Job"]["spec"]["template"]["spec"]
    assert pod["securityContext"] == digits["securityContext"]
    assert container["securityContext"] == digits["containers"][0]["securityContext"]


def test_the_shell_can_only_read_and_is_closed_in_as_a_node_is() -> None:
    (shell,) = resources(K8S / "shell")
    assert list(broken_by_pod(shell)) == []
    (container,) = shell["spec"]["containers"]
    node = rendered("job")["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert container["securityContext"] == node["securityContext"]
    assert container["image"] == IMAGE
    claims = [mount for mount in container["volumeMounts"] if mount["name"] != "scratch"]
    assert [mount["mountPath"] for mount in claims] == ["/workspace/shards", "/workspace/runs"]
    assert all(mount["readOnly"] for mount in claims)


def test_the_rdma_component_is_the_option_by_other_means() -> None:
    component = yaml.safe_load((K8S / "rdma" / "kustomization.yaml").read_text())
    assert component["kind"] == "Component"
    operations = {
        patch["target"]["kind"]: yaml.safe_load(patch["patch"]) for patch in component["patches"]
    }
    versions = {
        patch["target"]["kind"]: f"{patch['target']['group']}/{patch['target']['version']}"
        for patch in component["patches"]
    }
    for form in ("job", "jobset", "trainjob"):
        plain, with_option = rendered(form), rendered(form, rdma=RDMA)
        assert plain != with_option
        for kind, manifest in plain.items():
            if kind in operations:
                assert versions[kind] == manifest["apiVersion"]
                plain[kind] = patched(manifest, operations[kind])
        assert plain == with_option


@pytest.mark.parametrize("form", ["job", "jobset", "trainjob"])
def test_kubectl_puts_the_rdma_component_upon_a_recorded_job(form: str, tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    mine = tmp_path / "k8s" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(f"resources: [../{form}]\ncomponents: [../rdma]\n")
    built = str(kustomized(mine))
    assert built.count(f"'{RDMA}': '1'") == (4 if form == "trainjob" else 2)


def test_kubectl_reads_hostile_texts_as_they_were_written(tmp_path: Path) -> None:
    texts = [
        *("y", "1e3", "0o7", "0b1", "1_000", "12:30", "yes", "~", ".inf", "2026-11-23", "<<", "="),
        *("a\nb\n\n", " a", "a ", "\n", "\u2028", "\x07", "#", ": ", "--- ", "'", '"', "\\"),
    ]
    by_kind = rendered("job", script_spec(*texts, environment={"ASKED": "0x1F"}))
    (tmp_path / "job.yaml").write_text(as_yaml(list(by_kind.values())))
    (tmp_path / "kustomization.yaml").write_text("resources: [job.yaml]\n")
    # All as text: what kubectl had taken for a number it would have written as another one.
    documents = yaml.load_all(kustomized_text(tmp_path), Loader=yaml.BaseLoader)
    (job,) = (each for each in documents if each["kind"] == "Job")
    (node,) = job["spec"]["template"]["spec"]["containers"]
    assert node["args"][-len(texts) :] == texts
    assert {"name": "ASKED", "value": "0x1F"} in node["env"]
