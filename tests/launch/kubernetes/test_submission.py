"""`distrain submit kubernetes` makes all of a job's objects in a cluster, or none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distrain.errors import ExitCode
from launch.kubernetes.cluster import Cluster
from launch.kubernetes.labels import own_labels
from tests.api_server import ApiServer
from tests.cluster_objects import Commands, Said, ended, meanwhile, pod
from tests.conftest import ROOT, clean_environment

DIGITS = ROOT / "examples" / "digits.toml"
FORMS = {
    "job": ["ConfigMap/digits", "Job/digits", "NetworkPolicy/digits", "Service/digits"],
    "jobset": ["ConfigMap/digits", "JobSet/digits", "NetworkPolicy/digits"],
    "trainjob": [
        *("ConfigMap/digits", "NetworkPolicy/digits"),
        *("TrainJob/digits", "TrainingRuntime/digits"),
    ],
}


def submit(run: Commands, *options: object) -> Said:
    return run("submit", "kubernetes", DIGITS, "--nodes", "2", *options)


@pytest.mark.parametrize("form", FORMS)
def test_all_objects_of_a_job_are_made_and_belong_to_what_runs(
    server: ApiServer, run: Commands, form: str
) -> None:
    said = submit(run, "--form", form)
    assert said.code == ExitCode.DONE, said.err
    assert server.names() == FORMS[form]
    asked = [each.path.rpartition("/")[2] for each in server.requests if each.method == "POST"]
    assert asked[-1] == f"{form}s"  # what runs is made last
    (top,) = [name for name in FORMS[form] if name.split("/")[0].lower() == form]
    made = server.get(*top.split("/"))
    for name in set(FORMS[form]) - {top}:
        (owner,) = server.get(*name.split("/"))["metadata"]["ownerReferences"]
        assert owner == {
            **{key: made[key] for key in ("apiVersion", "kind")},
            **{key: made["metadata"][key] for key in ("name", "uid")},
        }
    assert "distrain kubernetes follow digits" in said.told
    server.remove(*top.split("/"))
    assert server.names() == []


def test_what_is_sent_is_what_a_dry_run_prints(server: ApiServer, run: Commands) -> None:
    printed = list(yaml.safe_load_all(submit(run, "--form", "job", "--dry-run").out))
    assert server.requests == []
    submit(run, "--form", "job")
    sent = [each for each in server.requests if each.method == "POST"]
    assert [each.body for each in sent] == printed
    assert {each.query["fieldValidation"] for each in sent} == {"Strict"}
    assert {each.token for each in sent} == {"Bearer a-token"}


def test_auto_is_a_jobset_where_that_is_installed_and_a_job_elsewhere(
    server: ApiServer, run: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(run)
    assert server.names() == FORMS["jobset"]
    with ApiServer(custom=False) as bare:
        submit(Commands(bare.kubeconfig(tmp_path), capsys))
        assert bare.names() == FORMS["job"]


@pytest.mark.parametrize(
    ("form", "named"), [("jobset", "JobSet"), ("trainjob", "Kubeflow Trainer")]
)
def test_a_form_that_is_not_installed_names_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, named: str
) -> None:
    with ApiServer(custom=False) as bare:
        said = submit(Commands(bare.kubeconfig(tmp_path), capsys), "--form", form)
        assert said.code == ExitCode.CONFIG
        assert named in said.told
        assert "or give --form job" in said.told
        assert bare.names() == []


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("at", ["networkpolicies", "services", "jobs$|configmaps/digits"])
def test_when_an_object_is_refused_all_that_was_made_is_removed(
    server: ApiServer, run: Commands, method: str, at: str
) -> None:
    server.fail(method, at, 422, "it is not to be")
    said = submit(run, "--form", "job")
    assert said.code == ExitCode.CONFIG
    assert "it is not to be" in said.told
    assert server.names() == []


def test_a_job_of_the_name_is_left_as_it_is_and_the_way_out_is_named(
    server: ApiServer, run: Commands
) -> None:
    submit(run, "--form", "job")
    before = [server.get(*name.split("/")) for name in server.names()]
    said = submit(run, "--form", "jobset", "-n", "ml")
    assert said.code == ExitCode.USAGE
    assert "namespace ml has a job digits already" in said.told
    assert "--name another" in said.told
    assert "distrain kubernetes cancel digits" in said.told
    assert "--namespace ml" in said.told
    assert [server.get(*name.split("/")) for name in server.names()] == before


@pytest.mark.parametrize("kind", ["ConfigMap", "Job"])
def test_what_others_have_made_is_not_touched(server: ApiServer, run: Commands, kind: str) -> None:
    version = {"ConfigMap": "v1", "Job": "batch/v1"}[kind]
    server.put({"apiVersion": version, "kind": kind, "metadata": {"name": "digits"}})
    said = submit(run, "--form", "job")
    assert said.code == ExitCode.USAGE
    assert f"has a {kind} digits already, and not of distrain's making" in said.told
    assert server.names() == [f"{kind}/digits"]


def test_an_answer_that_is_lost_on_the_way_leaves_neither_two_nor_half_a_job(
    server: ApiServer, run: Commands
) -> None:
    for path in ("configmaps", "jobs$"):
        server.fail("POST", path, is_done=True)  # done, and the connection breaks
        server.fail("POST", path, 503, "one moment")
    said = submit(run, "--form", "job")
    assert said.code == ExitCode.DONE, said.err
    assert server.names() == FORMS["job"]


def test_what_can_not_be_removed_again_is_named(server: ApiServer, run: Commands) -> None:
    server.fail("POST", "jobs$", 422, "not to be")
    server.fail("DELETE", "services", 403, 'cannot delete resource "services"')
    said = submit(run, "--form", "job")
    assert said.code == ExitCode.CONFIG
    assert "what was made may still be there (Service)" in said.told
    assert "distrain kubernetes cancel digits" in said.told
    assert server.names() == ["Service/digits"]
    assert run("kubernetes", "cancel", "digits").code == ExitCode.DONE
    assert server.names() == []


def test_a_server_that_is_lost_is_not_waited_for_once_more_for_each_object(
    server: ApiServer, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib3.util.retry.time.sleep", lambda _: None)
    server.fail("POST", "jobs$", times=-1)
    server.fail("GET", "/namespaces/", times=-1)
    said = submit(run, "--form", "job")
    assert said.code == ExitCode.WORKER_LOST
    assert "may still be there (Job, Service, NetworkPolicy, ConfigMap); to remove" in said.told
    assert {each.path for each in server.asked("GET", "/namespaces/")} == {
        "/apis/batch/v1/namespaces/ml/jobs/digits"
    }


def test_what_the_server_warns_of_is_told(server: ApiServer, run: Commands) -> None:
    warning = '299 - "would violate PodSecurity \\"restricted:latest\\""'
    server.fail("POST", "jobsets", 201, headers={"Warning": warning}, is_done=True)
    said = submit(run, "--form", "jobset")
    assert 'the cluster warns: would violate PodSecurity "restricted:latest"' in said.told


def test_a_submitted_job_is_followed_to_its_end(server: ApiServer, run: Commands) -> None:
    def goes_on() -> None:
        server.until(lambda: server.is_open("/jobs") and server.is_open("/pods$"))
        server.write("digits-0-abcde", "2026-11-23T07:05:00Z step 1")
        server.put(pod(0, "Failed", 65))
        server.change("Job", "digits", status=ended("Failed", "PodFailurePolicy", "exit code 65"))

    with meanwhile(goes_on):
        said = submit(run, "--form", "job", "--follow")
    assert said.code == ExitCode.DATA
    assert said.out == "step 1\n"


def test_no_torch_is_imported_to_ask_a_cluster() -> None:
    program = (
        "import sys, launch.main, launch.kubernetes.command, launch.kubernetes.jobs_command\n"
        "import launch.kubernetes.kubeconfig, launch.kubernetes.submission\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=clean_environment(), check=False)
    assert done.returncode == 0


def test_no_client_is_imported_where_no_cluster_is_asked() -> None:
    program = (
        "import sys, launch.main, launch.kubernetes.command\nsys.exit('kubernetes' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=clean_environment(), check=False)
    assert done.returncode == 0


def test_ctrl_c_in_the_middle_leaves_nothing(
    server: ApiServer, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        assert server.names() == FORMS["job"]
        raise KeyboardInterrupt

    monkeypatch.setattr(Cluster, "patch", interrupted)
    assert submit(run, "--form", "job").code == ExitCode.CTRL_C
    assert server.names() == []


@pytest.mark.parametrize("form", FORMS)
def test_pods_are_marked_as_following_looks_for_them(run: Commands, form: str) -> None:
    printed = yaml.safe_load_all(submit(run, "--form", form, "--dry-run").out)
    templates = [found for manifest in printed for found in pod_templates(manifest)]
    assert len(templates) == 1
    assert own_labels("digits").items() <= templates[0]["metadata"]["labels"].items()


def pod_templates(part: Any) -> list[Any]:
    """Whatever in a manifest holds containers, with what stands beside."""
    if isinstance(part, list):
        return [found for each in part for found in pod_templates(each)]
    if not isinstance(part, dict):
        return []
    if "containers" in (part.get("spec") or {}):
        return [part]
    return [found for each in part.values() for found in pod_templates(each)]
