"""How a job stands and what its end means, from what the cluster says of its objects."""

from typing import Any

import pytest

from distrain.errors import ExitCode
from launch.kubernetes.job_status import JobStatus, children, job_status
from tests.api_server import Object
from tests.cluster_objects import ended, job, pod

DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]


def status(top: Object, *pods: Object) -> JobStatus:
    return job_status(top, pods)


@pytest.mark.parametrize(
    ("top", "pods", "state"),
    [
        (job(suspend=True), [], "suspended"),
        (job(), [], "waiting"),
        (job(), [pod(0, "Pending")], "waiting"),
        (job(), [pod(0, "Pending"), pod(1)], "running"),
        (job(status=ended("Complete")), [pod(0, "Succeeded", 0)], "done"),
        (job("JobSet", status=ended("Completed")), [], "done"),
        (job("TrainJob", status=ended("Complete")), [], "done"),
        (job(status=ended("Failed")), [], "failed"),
        # Not yet the end: pods are still being stopped, or the last status written.
        (job(status=ended("FailureTarget")), [pod(0)], "running"),
        (job(status=ended("SuccessCriteriaMet")), [pod(0)], "running"),
    ],
)
def test_a_job_is_in_one_state(top: Object, pods: list[Object], state: str) -> None:
    assert status(top, *pods).state == state


def failed(number: int, code: int, at: str, **more: Any) -> Object:
    found = pod(number, "Failed", code, **more)
    (container,) = found["status"]["containerStatuses"]
    container["state"]["terminated"]["finishedAt"] = f"2026-11-23T07:{at}:00Z"
    return found


@pytest.mark.parametrize(
    ("message", "pods", "code"),
    [
        # What the cluster names as the reason.
        (
            "Container node for pod ml/digits-0-x failed with exit code 65 matching FailJob rule",
            [failed(0, 69, "01"), failed(1, 78, "02")],
            ExitCode.DATA,
        ),
        # The others fail for want of the first.
        (
            "limit",
            [failed(0, 69, "02"), failed(1, 74, "01"), failed(2, 69, "03")],
            ExitCode.STORAGE,
        ),
        ("limit", [failed(0, 70, "02"), failed(1, 78, "01")], ExitCode.CONFIG),
        # What an evicted pod exits with is none of its own.
        ("limit", [failed(0, 70, "01", conditions=DISRUPTED), failed(1, 69, "02")], 69),
        ("limit", [failed(0, 143, "01", conditions=DISRUPTED)], ExitCode.WORKER_LOST),
        ("limit", [failed(0, 137, "01")], ExitCode.WORKER_LOST),
        ("limit", [failed(0, 3, "01")], ExitCode.FAULT),
        ("limit", [failed(0, 75, "01")], ExitCode.STOPPED),
        # The pods are gone, and nothing is known.
        ("limit", [], ExitCode.FAULT),
    ],
)
def test_of_several_failures_the_one_that_led_to_the_others_counts(
    message: str, pods: list[Object], code: int
) -> None:
    top = job(status=ended("Failed", "BackoffLimitExceeded", message))
    assert status(top, *pods).exit_code == code


def test_a_job_whose_time_was_over_has_saved() -> None:
    top = job(status=ended("Failed", "DeadlineExceeded", "active longer than specified deadline"))
    assert status(top).exit_code == ExitCode.STOPPED


def test_the_newest_pod_of_a_number_is_the_node() -> None:
    earlier = [
        pod(1, "Failed", 69, name=f"digits-1-{at}", created=f"{at}") for at in ("2027", "2028")
    ]
    later = pod(1, name="digits-1-c", created="2029")
    found = status(job(), later, *earlier, pod(10), pod(2), pod(0))
    assert [node.number for node in found.nodes] == [0, 1, 2, 10]
    assert found.nodes[1].pod == "digits-1-c"
    assert found.replaced == 2


def test_pods_of_an_earlier_job_of_the_name_do_not_count() -> None:
    assert status(job(), pod(0, "Failed", 65, created="2026-11-22T07:00:00Z")).nodes == ()


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (pod(0, "Failed", reason="Evicted", message="low on memory"), "Evicted: low on memory"),
        (pod(0, "Failed", 75, conditions=DISRUPTED), "EvictionByEvictionAPI"),
        (pod(0, "Pending"), None),
        (pod(0, "Failed", 65), None),
    ],
)
def test_a_node_says_why_it_waits_or_failed(found: Object, reason: str | None) -> None:
    assert status(job(), found).nodes[0].reason == reason


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "OOMKilled"),
        ({"terminated": {"exitCode": 65, "reason": "Error"}}, None),
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}},
            "ImagePullBackOff",
        ),
        ({"waiting": {"reason": "PodInitializing"}}, None),
    ],
)
def test_a_container_says_why_it_waits_or_ended(state: Object, reason: str | None) -> None:
    found = pod(
        0, containerStatuses=[{"name": "proxy", "state": {}}, {"name": "node", "state": state}]
    )
    (node,) = status(job(), found).nodes
    assert (node.reason or "").partition(":")[0] == (reason or "")


@pytest.mark.parametrize("kind", ["JobSet", "TrainJob"])
def test_a_set_fails_for_what_its_job_failed_for(kind: str) -> None:
    top = job(kind, status=ended("Failed", "ReachedMaxRestarts", "first failed job: digits-node-0"))
    late = job(status=ended("Failed", "DeadlineExceeded", "active longer than specified deadline"))
    found = job_status(top, [], late)  # of which no pod is left
    assert found.exit_code == ExitCode.STOPPED
    assert found.reason == "DeadlineExceeded: active longer than specified deadline"
    message = "Container node for pod ml/digits-node-0-1-x failed with exit code 65 matching rule"
    wrong = job(status=ended("Failed", "PodFailurePolicy", message))
    assert job_status(top, [failed(0, 69, "01")], wrong).exit_code == ExitCode.DATA
    assert (job_status(top, [], job()).reason or "").startswith("ReachedMaxRestarts")


@pytest.mark.parametrize(
    ("top", "nodes"),
    [
        (job(completions=4), 4),
        (
            job(
                "JobSet",
                replicatedJobs=[
                    {"name": "node", "replicas": 1, "template": {"spec": {"completions": 4}}}
                ],
            ),
            4,
        ),
        (job("TrainJob", trainer={"numNodes": 4}), 4),
    ],
    ids=["Job", "JobSet", "TrainJob"],
)
def test_nodes_without_a_pod_are_counted_while_a_job_goes_on(top: Object, nodes: int) -> None:
    assert status(top).missing == nodes
    assert status(top, pod(0), pod(1, "Pending"), pod(1, "Failed", 69)).missing == nodes - 2
    done = {**top, "status": ended("Complete")}
    assert status(done, pod(0, "Succeeded", 0)).missing == 0


def test_a_sets_jobs_are_known_by_their_names() -> None:
    assert children(job()) == {("Job", "digits")}
    assert children(job("JobSet")) == {("JobSet", "digits"), ("Job", "digits-node-0")}
    assert children(job("TrainJob")) == {
        ("TrainJob", "digits"),
        ("JobSet", "digits"),
        ("Job", "digits-node-0"),
    }
