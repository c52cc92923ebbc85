"""The link between two machines is cut, for a while and for good: the weights are the same."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts import Hosts, connected_hosts, why_not
from tests.run_folders import last_step, named, status
from tests.started import (
    Started,
    random_moments,
    to_end_faulty,
    train_faulty,
    unbroken_faulty,
)

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no hosts can be had: {why_not()}")

# Steps are slow, so that none of it ends before its time; the rest is done at once in the end.
JOB = ("--training.epochs", 60)
PLACE = f"{Hosts.address(0)}:29400"
WHILE_S = 0.5
"""With what TCP then waits until it tries again, well below the 5 s of silence that are a loss."""

NOTICED_S = 90.0
"""5 s of silence, 4 s for joining again, and room for a machine that does ten other things."""

JOIN_S = 4


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with connected_hosts(2) as hosts:
        yield hosts


def node(hosts: Hosts, host: int, digits: Path, folder: Path) -> Started:
    more = ("--nodes", "1:2", "--rendezvous", PLACE, "--join-timeout", JOIN_S)
    return train_faulty(digits, folder, 1, *JOB, *more, within=hosts.on(host), STEP_S="0.1")


def until_both(first: Started, folder: Path) -> None:
    """Waits until both hosts work, and there is a checkpoint."""
    first.until(lambda: last_step(folder) > 10 and status(folder)["workers"] == 2)


def test_a_link_that_is_cut_for_a_while_costs_that_while_alone(
    hosts: Hosts, digits: Path, tmp_path: Path
) -> None:
    moments, folder = random_moments(), tmp_path / "run"
    with node(hosts, 0, digits, folder) as first, node(hosts, 1, digits, folder) as second:
        until_both(first, folder)
        starts = status(folder)["starts"]
        for _ in range(2):
            goal = last_step(folder) + moments.randint(1, 10)
            first.until(lambda: last_step(folder) > goal)  # noqa: B023 - it is called here
            hosts.cut(1)
            time.sleep(WHILE_S)
            hosts.mend(1)
        goal = last_step(folder) + 3
        first.until(lambda: last_step(folder) > goal)
        assert status(folder)["starts"] == starts
        second.process.terminate()
        assert (first.ends(), second.ends()) == (75, 75), first.said + second.said
    assert "restart" not in first.said
    assert to_end_faulty(digits, folder, *JOB) == unbroken_faulty(digits, *JOB)


def test_where_a_link_is_cut_for_good_one_side_goes_on_and_the_other_ends(
    hosts: Hosts, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with node(hosts, 0, digits, folder) as first, node(hosts, 1, digits, folder) as second:
        until_both(first, folder)
        resumed = len(named(folder, "resume"))
        hosts.cut(1)
        began = time.monotonic()
        assert second.ends() == 69, second.said
        # Which of these depends on whether the kernel's or our own time limit is over first.
        gone = rf"nobody keeps .* at {PLACE} \((no answer|No route to host)\), tried for {JOIN_S} s"
        assert re.search(gone, second.said), second.said
        assert time.monotonic() - began < NOTICED_S
        first.until(lambda: len(named(folder, "resume")) > resumed)
        first.until(lambda: "or it is lost (it has said nothing for 5 s)" in first.said)
        first.process.terminate()
        assert first.ends() == 75, first.said
    assert to_end_faulty(digits, folder, *JOB) == unbroken_faulty(digits, *JOB)
