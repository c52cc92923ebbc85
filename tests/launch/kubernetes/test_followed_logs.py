"""Logs that `distrain kubernetes follow` shows come whole, and a node's one behind the other."""

from types import SimpleNamespace

import pytest

from distrain.errors import ExitCode
from tests.api_server import ApiServer
from tests.cluster_objects import Commands, ended, finish, job, lines, meanwhile, pod, steps


def test_the_log_of_a_pod_comes_behind_that_of_the_pod_which_it_replaced(
    server: ApiServer, run: Commands
) -> None:
    server.put(job(status=ended("Complete")))
    # Of the two names the successor's is the first, and so it is in lists.
    server.put(pod(0, "Succeeded", 0, name="digits-0-aaaaa", created="2026-11-23T07:04:00Z"))
    server.put(pod(0, "Failed", 75, name="digits-0-zzzzz"))
    server.write("digits-0-zzzzz", *lines(1, 20))
    server.write("digits-0-aaaaa", *lines(21, 40))
    assert run("kubernetes", "follow", "digits").out == steps(1, 40)


def test_a_log_that_has_no_end_holds_its_successors_up_for_a_while_alone(
    begun: ApiServer, run: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.kubernetes.follow._LOGS_END_WITHIN_S", 0.3)

    def goes_on() -> None:
        begun.until(lambda: begun.is_open("digits-0-abcde/log"))
        begun.write("digits-0-fghij", *lines(1, 4))
        begun.put(pod(0, name="digits-0-fghij", created="2026-11-23T07:04:00Z"))
        begun.until(lambda: begun.is_open("digits-0-fghij/log"))
        finish(begun)

    with meanwhile(goes_on):
        said = run("kubernetes", "follow", "digits")
    assert (said.code, said.out) == (ExitCode.DONE, steps(1, 4))
    assert "node 0: its log may not be whole: no end of it for 0.3 s" in said.told


def test_a_log_that_takes_long_to_come_is_told_to_its_end(
    begun: ApiServer,
    run: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def clock() -> float:
        """Each line takes 4 s, and there are 10 s to wait for the next."""
        out = capsys.readouterr().out
        told.append(out)
        return 4.0 * "".join(told).count("\n")

    told: list[str] = []
    monkeypatch.setattr("launch.kubernetes.follow.time", SimpleNamespace(monotonic=clock))
    begun.write("digits-0-abcde", *lines(1, 30))
    finish(begun)
    said = run("kubernetes", "follow", "digits")
    assert "".join(told) + said.out == steps(1, 30)
    assert "may not be whole" not in said.told
