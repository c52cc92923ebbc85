"""Two machines and the link between them, which is cut; and the loss of one of the machines."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.deaths import kill_all
from tests.faults.trial import MissingToolError, Trial
from tests.hosts import Hosts, connected_hosts, why_not
from tests.run_folders import status
from tests.started import Started

PLACE = f"{Hosts.address(0)}:29400"


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """They see one disk; the first keeps the rendezvous."""
    if trouble := why_not():
        raise MissingToolError(f"no network namespaces here: {trouble}")
    with connected_hosts(2) as hosts:
        yield hosts


def start(trial: Trial, hosts: Hosts, host: int) -> Started:
    """The command on either host, with two workers there."""
    more = ("--nodes", "1:2", "--node-rank", host, "--rendezvous", PLACE)
    return trial.start(*more, workers=2, within=hosts.on(host))


@contextmanager
def training_on_both(trial: Trial, hosts: Hosts) -> Iterator[tuple[Started, Started]]:
    """Both launchers, once all four workers are in one group and have done a drawn step."""
    with start(trial, hosts, 0) as first, start(trial, hosts, 1) as second:
        first.until(lambda: workers_of(trial) == 4)
        trial.until_a_later_moment(first)
        yield first, second


def workers_of(trial: Trial) -> int:
    """How many are in the group, 0 before there is one."""
    if not (trial.run / "status.json").exists():
        return 0
    return int(status(trial.run).get("workers", 0))


def link_cut_for_a_while(trial: Trial) -> None:
    """For less or more time than it takes until the other machine is given up."""
    with two_hosts() as hosts, training_on_both(trial, hosts) as (first, second):
        hosts.cut(1)
        trial.let_go_on()
        time.sleep(trial.draw.choice([trial.draw.uniform(0.1, 2.0), trial.draw.uniform(2.0, 12.0)]))
        hosts.mend(1)
        trial.injected += 1
        trial.ends(first)
        assert second.ends() == 0, second.said


def link_cut_for_good(trial: Trial) -> None:
    """The first goes on without the second, which waits, and finds the run's end in its folder."""
    with two_hosts() as hosts, training_on_both(trial, hosts) as (first, second):
        hosts.cut(1)
        trial.injected += 1
        trial.ends(first)
        assert second.ends() == 0, second.said
    assert workers_of(trial) == 2


def rendezvous_lost(trial: Trial) -> None:
    """The machine that keeps it dies, and comes again: the other one has waited for it."""
    with two_hosts() as hosts, training_on_both(trial, hosts) as (first, second):
        kill_all(first)
        trial.injected += 1
        trial.ends(first, -signal.SIGKILL)
        with start(trial, hosts, 0) as again:
            trial.ends(again)
            assert second.ends() == 0, second.said
