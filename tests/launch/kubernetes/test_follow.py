"""`distrain kubernetes follow` tells all once, whatever breaks, and exits as the job did."""

import pytest

from distrain.errors import ExitCode
from tests.api_server import ApiServer
from tests.cluster_objects import (
    STAMP,
    Commands,
    ended,
    event,
    finish,
    job,
    lines,
    meanwhile,
    pod,
    steps,
)


def test_the_first_nodes_log_comes_out_whole_and_a_job_that_is_done_is_exit_code_0(
    begun: ApiServer, run: Commands
) -> None:
    begun.write("digits-0-abcde", *lines(1, 5))
    begun.write("digits-1-abcde", f"{STAMP}Z not of rank 0")

    def goes_on() -> None:
        begun.until(lambda: begun.is_open("digits-0-abcde/log"))
        begun.write("digits-0-abcde", *lines(6, 9))
        finish(begun)

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.DONE
    assert said.out == steps(1, 9)
    assert "the job digits is done" in said.told


def test_no_line_is_lost_or_told_twice_when_logs_and_watches_break_again_and_again(
    begun: ApiServer, run: Commands
) -> None:
    log = "digits-0-abcde/log"

    def goes_on() -> None:
        for at in range(4):
            begun.until(lambda: begun.is_open(log) and begun.is_open("/jobs"))
            begun.write("digits-0-abcde", *lines(1 + 5 * at, 5 + 5 * at))
            num_asked = len(begun.asked("GET", log))
            begun.break_streams("log")
            begun.break_streams("watch")
            begun.until(lambda seen=num_asked: len(begun.asked("GET", log)) > seen)  # type: ignore[misc]
        begun.put(event(begun.get("Job", "digits"), "FailedMount", "no such claim"))
        finish(begun)

    begun.put(event(begun.get("Job", "digits"), "FailedCreate", "exceeded quota"))
    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.DONE
    assert said.out == steps(1, 20)
    for text in ("FailedCreate: exceeded quota", "FailedMount: no such claim", "node 0 runs on"):
        assert said.err.count(text) == 1


def test_a_line_that_comes_in_halves_is_told_whole(begun: ApiServer, run: Commands) -> None:
    log, (*before, half, after) = "digits-0-abcde/log", lines(1, 4)

    def goes_on() -> None:
        begun.until(lambda: begun.is_open(log))
        begun.write("digits-0-abcde", *before)
        begun.write_half("digits-0-abcde", half)
        begun.until(lambda: len(begun.asked("GET", log)) > 1)
        begun.write("digits-0-abcde", half, after)
        finish(begun)

    with meanwhile(goes_on):
        assert run("kubernetes", "follow", "digits").out == steps(1, 4)


@pytest.mark.parametrize("in_stream", [True, False], ids=["event", "status"])
def test_a_version_that_the_server_has_forgotten_leads_to_a_new_list(
    begun: ApiServer, run: Commands, in_stream: bool
) -> None:
    def goes_on() -> None:
        begun.until(lambda: begun.is_open("/jobs") and begun.is_open("/pods$"))
        num_lists = len(begun.asked("LIST", "/pods$"))
        if not in_stream:
            begun.fail("WATCH", "/pods$", 410, told={"reason": "Expired"})
        # Between the watch that breaks and the next list a pod goes and another comes, unwatched.
        with begun.frozen():
            begun.break_streams("watch")
            begun.remove("Pod", "digits-0-abcde")
            begun.put(pod(0, name="digits-0-fghij"))
            begun.write("digits-0-fghij", *lines(1, 3))
            begun.forget()
        begun.until(lambda: len(begun.asked("LIST", "/pods$")) > num_lists)
        begun.until(lambda: begun.is_open("digits-0-fghij/log"))
        begun.put(pod(0, "Succeeded", 0, name="digits-0-fghij"))
        begun.change("Job", "digits", status=ended("Complete"))

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.DONE
    assert said.out == steps(1, 3)
    assert said.err.count("node 0: the pod digits-0-abcde is gone") == 1
    assert said.err.count("node 0 runs on worker-0 as digits-0-fghij") == 1


def test_a_watch_goes_on_from_a_bookmark_without_another_list(
    begun: ApiServer, run: Commands
) -> None:
    def goes_on() -> None:
        begun.until(lambda: begun.is_open("/pods$"))
        begun.put(job(name="another"))  # moves the version on; watches of pods learn it by bookmark
        begun.until(lambda: begun.is_open("/pods$"))
        begun.bookmarked()
        num_watches = len(begun.asked("WATCH", "/pods$"))
        begun.forget()
        begun.break_streams("watch")
        begun.until(lambda: len(begun.asked("WATCH", "/pods$")) > num_watches)
        finish(begun)

    with meanwhile(goes_on):
        assert run("kubernetes", "follow", "digits").code == ExitCode.DONE
    assert len(begun.asked("LIST", "/pods$")) == 2  # at the begin, and at the end


def test_a_pod_is_replaced_and_its_successors_log_goes_on(begun: ApiServer, run: Commands) -> None:
    begun.write("digits-0-abcde", *lines(1, 4))

    def goes_on() -> None:
        begun.until(lambda: begun.is_open("digits-0-abcde/log"))
        disrupted = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
        }
        begun.put(pod(0, "Failed", 75, conditions=[disrupted]))
        begun.put(pod(0, "Pending", name="digits-0-fghij"))
        begun.write("digits-0-fghij", *lines(5, 8))
        begun.put(pod(0, name="digits-0-fghij"))
        begun.until(lambda: begun.is_open("digits-0-fghij/log"))
        begun.put(pod(0, "Succeeded", 0, name="digits-0-fghij"))
        begun.put(pod(1, "Succeeded", 0))
        begun.change("Job", "digits", status=ended("Complete"))

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.DONE
    assert said.out == steps(1, 8)
    assert "node 0 failed: exit code 75: interrupted, with everything saved" in said.told
    assert "PreemptionByScheduler" in said.told


def test_all_logs_name_their_nodes(begun: ApiServer, run: Commands) -> None:
    for number in (0, 1):
        begun.write(f"digits-{number}-abcde", f"{STAMP}Z from {number}")
    finish(begun)
    said = run("kubernetes", "follow", "digits", "--logs", "all")
    assert sorted(said.out.splitlines()) == ["[node 0] from 0", "[node 1] from 1"]


def test_of_failed_nodes_alone_the_end_of_the_log_is_shown(begun: ApiServer, run: Commands) -> None:
    begun.write("digits-1-abcde", *lines(1, 200))
    begun.write("digits-0-abcde", f"{STAMP}Z of no interest")
    begun.put(pod(0, "Failed", 69))
    begun.put(pod(1, "Failed", 65))
    begun.change("Job", "digits", status=ended("Failed", "PodFailurePolicy", "a pod failed"))
    said = run("kubernetes", "follow", "digits", "--logs", "failed")
    assert said.code == ExitCode.DATA
    assert [line for line in said.out.splitlines() if "node 1" in line] == [
        f"[node 1] step {n}" for n in range(101, 201)
    ]


def test_the_end_of_a_log_is_asked_for_again_where_the_answer_is_lost(
    begun: ApiServer, run: Commands
) -> None:
    begun.write("digits-1-abcde", *lines(1, 2))
    begun.fail("GET", "digits-1-abcde/log$")  # the connection is closed
    begun.put(pod(1, "Failed", 65))
    begun.change("Job", "digits", status=ended("Failed", "PodFailurePolicy", "a pod failed"))
    said = run("kubernetes", "follow", "digits", "--logs", "failed")
    assert said.code == ExitCode.DATA
    assert said.out.splitlines() == ["[node 1] step 1", "[node 1] step 2"]


def test_ends_of_logs_that_may_not_be_read_are_left_out(begun: ApiServer, run: Commands) -> None:
    begun.fail("GET", "digits-1-abcde/log$", 403, "no")
    begun.put(pod(1, "Failed", 65))
    begun.change("Job", "digits", status=ended("Failed", "PodFailurePolicy", "a pod failed"))
    said = run("kubernetes", "follow", "digits", "--logs", "failed")
    assert (said.code, said.out) == (ExitCode.DATA, "")
    assert "logs are left out" in said.told


CODES = [
    (64, 64, "wrong usage"),
    (65, 65, "bad data"),
    (70, 70, "a fault in the program or model"),
    (74, 74, "storage failed"),
    (78, 78, "bad config"),
    (69, 69, "a worker or the network was lost"),
    (137, 69, "exit code 69"),
    (1, 70, "exit code 70"),
]


@pytest.mark.parametrize(("code", "gives", "text"), CODES)
def test_a_job_that_failed_exits_as_its_node_did(
    server: ApiServer, run: Commands, code: int, gives: int, text: str
) -> None:
    server.put(job(status=ended("Failed", "BackoffLimitExceeded", "limit reached")))
    server.put(pod(0, "Failed", code))
    said = run("kubernetes", "follow", "digits")
    assert said.code == gives
    assert text in said.told
    assert "BackoffLimitExceeded: limit reached" in said.told


def test_a_queued_job_is_waited_for_and_one_that_is_suspended_later_is_exit_code_75(
    server: ApiServer, run: Commands
) -> None:
    server.put(job(suspend=True))

    def goes_on() -> None:
        server.until(lambda: server.is_open("/jobs") and server.is_open("/pods$"))
        server.put(job(suspend=False))
        server.put(pod(0))
        server.until(lambda: server.is_open("digits-0-abcde/log"))
        server.put(job(suspend=True))
        server.remove("Pod", "digits-0-abcde")

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.STOPPED
    assert "is suspended: a queue such as Kueue, or a person, has to let it start" in said.told
    assert "the job digits was suspended; what it has saved is there" in said.told


def test_a_job_that_somebody_removes_is_exit_code_75(begun: ApiServer, run: Commands) -> None:
    def goes_on() -> None:
        begun.until(lambda: begun.is_open("/jobs") and begun.is_open("digits-0-abcde/log"))
        begun.remove("Job", "digits")
        begun.write("digits-0-abcde", *lines(1, 2))  # it is given the time to save
        begun.remove("Pod", "digits-0-abcde")

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.STOPPED
    assert said.out == steps(1, 2)
    assert "the job digits was removed; what it has saved is there" in said.told


def test_another_job_made_in_its_place_is_not_followed(begun: ApiServer, run: Commands) -> None:
    def goes_on() -> None:
        begun.until(lambda: begun.is_open("/jobs"))
        with begun.frozen():
            begun.break_streams("watch")
            begun.remove("Job", "digits")
            begun.remove("Pod", "digits-0-abcde")
            begun.put(job())
            begun.forget()

    with meanwhile(goes_on):
        assert run("kubernetes", "follow", "digits").code == ExitCode.STOPPED


def test_a_cluster_that_is_lost_is_exit_code_69(begun: ApiServer, run: Commands) -> None:
    def goes_on() -> None:
        begun.until(lambda: begun.is_open("/jobs"))
        for method in ("LIST", "WATCH", "GET"):
            begun.fail(method, ".", times=-1)
        begun.break_streams("watch")
        begun.break_streams("log")

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits", "--lost-after", "0.5")
    assert said.code == ExitCode.WORKER_LOST
    assert "no answer for 0.5 s" in said.told


def test_credentials_that_are_refused_in_the_middle_end_following_at_once(
    begun: ApiServer, run: Commands
) -> None:
    def goes_on() -> None:
        begun.until(lambda: begun.is_open("/jobs"))
        for method in ("LIST", "WATCH", "GET"):
            begun.fail(method, ".", 401, "Unauthorized", times=-1)
        begun.break_streams("watch")

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.CONFIG
    assert "doesn't know who is asking (401 Unauthorized)" in said.told
    assert begun.names() == ["Job/digits", "Pod/digits-0-abcde", "Pod/digits-1-abcde"]


def test_without_the_right_to_read_events_pods_say_why_they_wait(
    begun: ApiServer, run: Commands
) -> None:
    message = 'events is forbidden: User "someone" cannot list resource "events"'
    begun.fail("LIST", "/events$", 403, message, times=-1)
    waiting = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}

    def goes_on() -> None:
        begun.until(lambda: bool(begun.asked("LIST", "/events$")) and begun.is_open("/pods$"))
        conditions = [{**waiting, "message": "0/3 nodes are available"}]
        begun.put(pod(2, "Pending", conditions=conditions, containerStatuses=[]))
        finish(begun)

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.DONE
    assert "events are left out: you may not list events in namespace ml" in said.told
    assert "node 2 waits: Unschedulable: 0/3 nodes are available" in said.told


def test_without_the_right_to_read_logs_the_job_is_followed_all_the_same(
    begun: ApiServer, run: Commands
) -> None:
    begun.fail("GET", "/log$", 403, 'cannot get resource "pods/log"')
    finish(begun)
    said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.DONE
    assert "logs are left out: you may not get pods/log in namespace ml" in said.told


@pytest.mark.parametrize("kind", ["JobSet", "TrainJob"])
def test_what_befalls_the_jobs_of_a_set_is_told_and_what_befalls_others_is_not(
    server: ApiServer, run: Commands, kind: str
) -> None:
    server.put(job(kind, status=ended("Completed" if kind == "JobSet" else "Complete")))
    child = {"kind": "Job", "metadata": {"name": "digits-node-0", "uid": "of-the-child"}}
    other = {"kind": "Job", "metadata": {"name": "digits-2-node-0", "uid": "of-another"}}
    server.put(event(child, "FailedCreate", "forbidden by a quota"))
    server.put(event(other, "FailedCreate", "not of this job"))
    before = "2026-11-23T06:00:00Z"
    server.put(event(child, "BackoffLimitExceeded", "of yesterday", lastTimestamp=before))
    said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.DONE
    assert said.told.count("FailedCreate: forbidden by a quota") == 1
    assert "not of this job" not in said.told
    assert "of yesterday" not in said.told


def test_without_the_right_to_list_pods_a_job_is_not_followed(
    begun: ApiServer, run: Commands
) -> None:
    message = 'pods is forbidden: User "someone" cannot list resource "pods"'
    begun.fail("LIST", "/pods$", 403, message, times=-1)
    said = run("kubernetes", "follow", "digits")
    assert said.code == ExitCode.CONFIG
    assert "you may not list pods in namespace ml: ask for a role there" in said.told


def test_more_logs_than_can_be_shown_at_a_time_are_left_out_by_name(
    server: ApiServer, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.kubernetes.follow._MOST_LOGS", 1)
    server.put(job())
    for number in (0, 1):
        server.put(pod(number))

    def goes_on() -> None:
        # A watch is open once all of the list that it goes on from has been handed on.
        server.until(lambda: server.is_open("digits-.-abcde/log") and server.is_open("/pods$"))
        finish(server)

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits", "--logs", "all")
    assert said.code == ExitCode.DONE
    assert "node 1: its log is left out; 1 at most at a time" in said.told
