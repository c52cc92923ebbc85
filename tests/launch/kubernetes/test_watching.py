"""How long a cluster that gives no answer is asked again, and how often."""

import threading

import pytest

from distrain.errors import ExitCode
from launch.kubernetes.cluster_errors import ClusterError, lost
from launch.kubernetes.watching import Patience


class Waits(threading.Event):
    """Notes for how long somebody would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.told.append(timeout or 0.0)
        return False


def test_the_time_between_two_tries_grows_up_to_a_bound_and_starts_anew_after_an_answer() -> None:
    waits = Waits()
    patience = Patience(300.0, waits)
    for _ in range(8):
        patience.wait(lost("no answer"))
    patience.answered()
    patience.wait(lost("no answer"))
    assert waits.told == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 0.2])


def test_a_server_that_says_when_to_come_again_is_left_alone_until_then() -> None:
    waits = Waits()
    busy = ClusterError("busy", status=429, exit_code=ExitCode.WORKER_LOST, retry_after_s=7.0)
    Patience(300.0, waits).wait(busy)
    assert waits.told == [7.0]


def test_what_no_time_mends_is_raised_at_once() -> None:
    refused = ClusterError("no such right", status=403, exit_code=ExitCode.CONFIG)
    with pytest.raises(ClusterError, match="no such right"):
        Patience(300.0, Waits()).wait(refused)


def test_after_its_time_a_cluster_counts_as_lost() -> None:
    patience = Patience(0.0, Waits())
    with pytest.raises(ClusterError, match="no answer for 0 s, the last try: gone") as raised:
        patience.wait(lost("gone"))
    assert raised.value.exit_code == ExitCode.WORKER_LOST
