"""`distrain kubernetes status` and `cancel`, and how following is ended by Ctrl-C."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distrain.errors import ExitCode
from tests.api_server import ApiServer
from tests.cluster_objects import Commands, ended, event, job, meanwhile, pod
from tests.conftest import ROOT, TIMEOUT_S, clean_environment

DIGITS = ROOT / "examples" / "digits.toml"


def test_status_names_every_node_where_it_is_and_why_it_waits(
    server: ApiServer, run: Commands
) -> None:
    server.put(job())
    server.put(pod(0))
    unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu, so nothing can be done yet"
    server.put(pod(1, "Failed", 69, created="2026-11-23T07:00:00Z"))
    conditions = [{**unscheduled, "message": message}]
    later = pod(1, "Pending", name="digits-1-fghij", created="2026-11-23T07:03:00Z")
    later["status"] = {"phase": "Pending", "conditions": conditions}
    server.put(later)
    said = run("kubernetes", "status", "digits")
    lines = said.out.splitlines()
    assert said.code == ExitCode.DONE
    assert lines[0] == "digits in namespace ml: running"
    assert lines[1].startswith("  Job, made ")
    assert lines[2] == "  node 0: running on worker-0, pod digits-0-abcde"
    assert "node 1: pending on worker-1, pod digits-1-fghij; Unschedulable: 0/3" in said.out
    assert lines[-1] == "  and 1 pod that failed before"
    assert max(map(len, lines)) <= 80


def test_status_says_what_keeps_the_cluster_from_making_pods(
    server: ApiServer, run: Commands
) -> None:
    server.put(job(completions=2))
    top, of_another = server.get("Job", "digits"), job(name="another")
    server.put(event(top, "FailedCreate", "no such service account", number=1))
    last = "2026-11-23T07:02:00Z"
    server.put(event(top, "FailedCreate", "exceeded quota: gpus", number=2, lastTimestamp=last))
    server.put(event(top, "SuccessfulCreate", "digits-0", type="Normal", lastTimestamp=last[:-1]))
    server.put(event(of_another, "FailedCreate", "not of this job", lastTimestamp="2027"))
    lines = run("kubernetes", "status", "digits").out.splitlines()
    assert lines[0] == "digits in namespace ml: waiting"
    assert lines[2:] == ["  FailedCreate: exceeded quota: gpus", "  2 nodes have no pod"]
    message = 'events is forbidden: User "someone" cannot list resource "events"'
    server.fail("LIST", "/events$", 403, message)
    said = run("kubernetes", "status", "digits")
    assert said.code == ExitCode.DONE
    assert "why pods are missing stands in events: you may not list events" in said.out


def test_status_of_a_set_tells_why_its_job_failed(server: ApiServer, run: Commands) -> None:
    server.put(job("JobSet", status=ended("Failed", "ReachedMaxRestarts", "of digits-node-0")))
    late = ended("Failed", "DeadlineExceeded", "active longer than specified deadline")
    server.put(job(name="digits-node-0", status=late))
    for action in ("status", "follow"):
        said = run("kubernetes", action, "digits")
        assert "DeadlineExceeded: active longer" in said.out + said.told
        assert "exit code 75" in said.out + said.told
    assert said.code == ExitCode.STOPPED
    server.fail("GET", "/jobs/digits-node-0", 403, 'cannot get resource "jobs"')
    assert "ReachedMaxRestarts: of digits-node-0" in run("kubernetes", "status", "digits").out


def test_status_for_a_program_has_all_of_it(server: ApiServer, run: Commands) -> None:
    server.put(job("JobSet", status=ended("Failed", "FailedJobs", "jobset failed")))
    server.put(pod(0, "Failed", 65))
    server.put(pod(1, "Failed", 69))
    told = json.loads(run("kubernetes", "status", "digits", "--json").out)
    nodes = told.pop("nodes")
    assert told == {
        "name": "digits",
        "namespace": "ml",
        "form": "JobSet",
        "state": "failed",
        "reason": "FailedJobs: jobset failed",
        "exit_code": 65,
        "replaced": 0,
        "missing": 0,
        "created": "2026-11-23T07:00:00Z",
    }
    assert [(node["number"], node["phase"], node["exit_code"]) for node in nodes] == [
        (0, "Failed", 65),
        (1, "Failed", 69),
    ]


def test_status_without_a_name_is_a_line_for_each_job(
    server: ApiServer, run: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("kubernetes", "status").out == "there is no job in namespace ml\n"
    server.put(job(completions=2))
    server.put(pod(0))
    server.put(pod(1, "Pending"))
    trained = server.put(job("TrainJob", name="a" * 45, status=ended("Failed")))
    owner = {"uid": trained["metadata"]["uid"], "controller": True}
    made = job("JobSet", name="a" * 45)  # by Trainer, of the TrainJob
    made["metadata"]["ownerReferences"] = [owner]
    server.put(made)
    of_another = job(name="another")
    del of_another["metadata"]["labels"]
    server.put(of_another)
    lines = run("kubernetes", "status").out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["NAME", "STATE", "NODES"],
        ["a" * 45, "failed", "0/0"],
        ["digits", "running", "1/2"],
    ]
    assert max(map(len, lines)) <= 80
    told = json.loads(run("kubernetes", "status", "--json").out)
    assert [(each["name"], each["state"]) for each in told] == [
        ("a" * 45, "failed"),
        ("digits", "running"),
    ]
    with ApiServer(custom=False) as bare:
        assert "no job" in Commands(bare.kubeconfig(tmp_path), capsys)("kubernetes", "status").out


@pytest.mark.parametrize("action", ["status", "follow"])
def test_a_job_that_is_not_there_is_wrong_usage(run: Commands, action: str) -> None:
    said = run("kubernetes", action, "digits")
    assert said.code == ExitCode.USAGE
    assert "there is no job digits in namespace ml of the cluster at http://127.0.0.1" in said.told


@pytest.mark.parametrize("action", ["status", "follow", "cancel"])
@pytest.mark.parametrize("name", ["../secrets/x", "a b", "Digits", "x" * 80, "a\nb"])
def test_hostile_names_never_reach_the_cluster(
    server: ApiServer, run: Commands, action: str, name: str
) -> None:
    assert run("kubernetes", action, name).code == ExitCode.USAGE
    assert run("kubernetes", action, "digits", "--namespace", name).code == ExitCode.USAGE
    assert server.requests == []


@pytest.mark.parametrize("action", ["status", "follow", "cancel"])
def test_a_job_of_somebody_elses_is_left_alone(
    server: ApiServer, run: Commands, action: str
) -> None:
    found = job()
    del found["metadata"]["labels"]
    server.put(found)
    said = run("kubernetes", action, "digits")
    assert said.code == ExitCode.USAGE
    assert "the Job digits in namespace ml is not of distrain's making" in said.told
    assert server.names() == ["Job/digits"]


def test_a_user_without_rights_on_kinds_that_are_not_installed_finds_the_job(
    server: ApiServer, run: Commands
) -> None:
    server.put(job())
    for kind in ("trainjobs", "jobsets"):
        server.fail("GET", kind, 403, f'cannot get resource "{kind}"')
    assert run("kubernetes", "status", "digits").code == ExitCode.DONE


@pytest.mark.parametrize("kind", ["Job", "JobSet", "TrainJob"])
def test_cancel_removes_all_of_a_job_and_is_no_error_when_there_is_none(
    server: ApiServer, run: Commands, kind: str
) -> None:
    top = server.put(job(kind))
    labels = top["metadata"]["labels"]
    owner = {"uid": top["metadata"]["uid"], "controller": True}
    if kind == "TrainJob":  # the JobSet that Trainer has made of it
        made = {"name": "digits", "labels": labels, "ownerReferences": [owner]}
        server.put({"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": made})
    without_owner = {"name": "digits", "labels": labels}
    server.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": without_owner})
    server.put({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "digits"}})
    said = run("kubernetes", "cancel", "digits")
    assert said.code == ExitCode.DONE
    assert "the job digits is removed from namespace ml" in said.out
    assert server.names() == ["Service/digits"]  # which is somebody else's
    (first, *_) = server.asked("DELETE", ".")
    assert first.path.endswith(f"/{kind.lower()}s/digits")
    assert first.body == {"propagationPolicy": "Foreground"}
    again = run("kubernetes", "cancel", "digits")
    assert again.code == ExitCode.DONE
    assert "there is no job digits in namespace ml: nothing to remove" in again.out


def test_cancel_waits_for_pods_that_are_saving(server: ApiServer, run: Commands) -> None:
    server.put(job())
    server.is_slow_to_delete = True

    def goes_on() -> None:
        server.until(lambda: len(server.asked("GET", "/jobs/digits")) >= 2)
        server.finish_deletions()

    with meanwhile(goes_on):
        said = run("kubernetes", "cancel", "digits")
    assert (said.code, server.names()) == (ExitCode.DONE, [])


@pytest.mark.parametrize("form", ["job", "jobset", "trainjob"])
def test_what_pods_need_to_save_is_there_until_they_are_gone(
    server: ApiServer, run: Commands, form: str
) -> None:
    run("submit", "kubernetes", DIGITS, "--nodes", "2", "--form", form)
    made = server.names()
    server.is_slow_to_delete = True
    there: list[list[str]] = []

    def goes_on() -> None:
        server.until(lambda: len(server.asked("DELETE", f"/{form}s/digits")) == 1)
        server.until(lambda: len(server.asked("GET", f"/{form}s/digits")) >= 3)
        there.append(server.names())
        server.is_slow_to_delete = False
        server.finish_deletions()

    with meanwhile(goes_on):
        said = run("kubernetes", "cancel", "digits")
    assert there == [made]
    assert (said.code, server.names()) == (ExitCode.DONE, [])


def test_a_cancellation_that_was_broken_off_is_ended_by_another(
    server: ApiServer, run: Commands
) -> None:
    run("submit", "kubernetes", DIGITS, "--nodes", "2", "--form", "job")
    server.is_slow_to_delete = True
    said = run("kubernetes", "cancel", "digits", "--timeout", "0.1")
    assert said.code == ExitCode.WORKER_LOST
    assert "cancel it again once they are gone" in said.told
    server.finish_deletions()
    assert server.names() == ["ConfigMap/digits", "NetworkPolicy/digits", "Service/digits"]
    server.is_slow_to_delete = False
    assert "the job digits is removed" in run("kubernetes", "cancel", "digits").out
    assert server.names() == []


def test_cancel_does_not_wait_for_ever_nor_at_all_when_told_so(
    server: ApiServer, run: Commands
) -> None:
    server.put(job())
    server.is_slow_to_delete = True
    said = run("kubernetes", "cancel", "digits", "--timeout", "0.1")
    assert said.code == ExitCode.WORKER_LOST
    assert "is being removed, and not gone after 0.1 s" in said.told
    assert "is asked to end" in run("kubernetes", "cancel", "digits", "--timeout", "0").out
    assert "digits in namespace ml: ending" in run("kubernetes", "status", "digits").out


def test_ctrl_c_ends_following_and_not_the_job(server: ApiServer, tmp_path: Path) -> None:
    server.put(job())
    server.put(pod(0))
    server.write("digits-0-abcde", "2026-11-23T07:05:00Z step 1")
    config = server.kubeconfig(tmp_path)
    words = ["kubernetes", "follow", "digits", "--kubeconfig", str(config)]
    with subprocess.Popen(
        [sys.executable, "-m", "launch.main", *words],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "step 1\n"
        following.send_signal(signal.SIGINT)
        _, err = following.communicate(timeout=TIMEOUT_S)
    assert following.returncode == ExitCode.CTRL_C
    told = " ".join(err.split())
    assert "no longer following; the job digits goes on" in told
    assert f"to end it: distrain kubernetes cancel digits --kubeconfig {config}" in told
    assert server.asked("DELETE", ".") == []
    assert server.names() == ["Job/digits", "Pod/digits-0-abcde"]


def test_ctrl_c_ends_waiting_for_a_removal_that_goes_on(
    server: ApiServer, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(_: float) -> None:
        raise KeyboardInterrupt

    run("submit", "kubernetes", DIGITS, "--form", "job")
    server.is_slow_to_delete = True
    monkeypatch.setattr("launch.kubernetes.cancellation.time.sleep", pressed)
    said = run("kubernetes", "cancel", "digits")
    assert said.code == ExitCode.CTRL_C
    assert "no longer waiting; the job digits is being removed" in said.told
    assert "To remove that too: distrain kubernetes cancel digits" in said.told
    assert server.names() == ["ConfigMap/digits", "Job/digits", "NetworkPolicy/digits"]
