"""One run on hosts with addresses of their own: they come and die, the bits are those of 1 x 1."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.job import digits_with_rows
from tests.faults.network import workers_of
from tests.faults.trial import Trial
from tests.hosts import Hosts, connected_hosts, why_not
from tests.run_folders import status
from tests.started import Started, random_moments

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no hosts can be had: {why_not()}")

PORT = 29400
SLOW_S = 1.2
"""How long a step takes while a slow node takes part: the run must not end before its time, however
long the command of another node takes to start."""


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with connected_hosts(3) as hosts:
        hosts.call("keeper", 0)
        yield hosts


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_with_rows(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def trial(numbered: Path, tmp_path: Path) -> Trial:
    moments: random.Random = random_moments()
    return Trial(numbered, tmp_path, moments, "plain")


def node(
    trial: Trial, hosts: Hosts, host: int, nodes: str, node_rank: int, step_s: float = 0.1
) -> Started:
    """The command of a node with two workers, whose steps take so long at least."""
    more = ("--nodes", nodes, "--node-rank", node_rank, "--rendezvous", f"keeper:{PORT}")
    environment = {"FAULT_STEP_S": str(step_s)}
    return trial.start(*more, workers=2, environment=environment, within=hosts.on(host))


def test_a_node_that_joins_and_one_that_is_lost_at_any_moment_change_nothing(
    trial: Trial, hosts: Hosts
) -> None:
    # The others' commands come first: they wait for the one that keeps the rendezvous.
    with (
        node(trial, hosts, 1, "2:3", 1, SLOW_S) as second,
        node(trial, hosts, 0, "2:3", 0) as first,
    ):
        first.until(lambda: workers_of(trial) == 4)
        assert status(trial.run)["host"] == "node-0"
        assert sorted(first.workers()) == [0, 1]
        trial.until_a_later_moment(first)
        with node(trial, hosts, 2, "2:3", 2) as third:
            first.until(lambda: workers_of(trial) == 6)
            trial.until_a_later_moment(first)
            second.process.kill()
            trial.injected += 1
            first.until(lambda: workers_of(trial) == 4)
            trial.ends(first)
            assert third.ends() == 0, third.said
    assert "(restart 1 of 40)" in first.said
    assert "(restart 2 of 40)" not in first.said
    trial.conclude()


def test_a_keeper_that_is_cut_off_and_replaced_does_not_train_beside_the_others(
    trial: Trial, hosts: Hosts
) -> None:
    with (
        node(trial, hosts, 0, "2:2", 0) as lost,
        node(trial, hosts, 1, "2:2", 1) as second,
    ):
        lost.until(lambda: workers_of(trial) == 4)
        trial.until_a_later_moment(lost)
        hosts.cut(0)
        trial.injected += 1
        hosts.call("keeper", 2)
        with node(trial, hosts, 2, "2:2", 0) as replaced:
            second.until(lambda: (workers_of(trial), status(trial.run)["host"]) == (4, "node-2"))
            hosts.mend(0)
            trial.until_a_later_moment(replaced)
            assert not lost.workers()
            trial.ends(replaced)
            assert second.ends() == 0, second.said
        # It waits where nobody comes any more.
        assert not lost.workers()
        lost.process.terminate()
        assert lost.ends() == 75, lost.said
    assert f"the machine that keeps the rendezvous at keeper:{PORT} is lost" in second.said
    assert "(restart 2 of 40)" not in second.said
    trial.conclude()
