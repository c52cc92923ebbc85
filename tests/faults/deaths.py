"""Processes that are killed by SIGKILL: workers in each phase, the launcher, all of them."""

import signal
import time
from contextlib import suppress

import psutil

from distrain.coordinator.host_memory import SnapshotFolder
from tests.faults.job import SHARDED, STEPS
from tests.faults.trial import WORKERS, Injection, Plant, Trial
from tests.run_folders import named
from tests.started import Started

MOST_CALLS = {
    "loading": 8,
    "forward": 16,
    "backward": 16,
    "update": 8,
    "sum": 16,
    "evaluation": 3,
}
"""A worker is at each point so often within some 8 steps of a start, or 3 epochs."""


def each_rank_killed_in(point: str) -> Injection:
    """In one run, every rank dies at a drawn call of the point, in drawn order."""

    def inject(trial: Trial) -> None:
        ranks = trial.draw.sample(range(WORKERS), WORKERS)
        calls = [trial.draw.randint(1, MOST_CALLS[point]) for _ in ranks]
        delays_s = [trial.draw.choice([0.0, trial.draw.uniform(0.0, 0.003)]) for _ in ranks]
        given = zip(ranks, calls, delays_s, strict=True)
        trial.plant(*(Plant(point, rank, call, delay_s) for rank, call, delay_s in given))
        with trial.start() as run:
            trial.ends(run)

    return inject


def killed_in_a_copy(trial: Trial) -> None:
    """Three times in one run, who copies the state to memory dies within; of a sharded run each."""
    ranks = trial.draw.sample(range(WORKERS), WORKERS)
    is_sharded = trial.variant == SHARDED
    calls = [trial.draw.randint(1, 12) for _ in ranks]
    trial.plant(
        *(
            Plant("copy", rank if is_sharded else None, n)
            for rank, n in zip(ranks, calls, strict=True)
        )
    )
    with trial.start("--checkpoint.snapshot-every", 1) as run:
        trial.ends(run)


def killed_in_a_write(point: str, most_calls: int) -> Injection:
    """Twice in one run, who writes dies at a drawn call of the point."""

    def inject(trial: Trial) -> None:
        calls = [trial.draw.randint(1, most_calls) for _ in range(2)]
        delay_s = trial.draw.uniform(0.0, 0.001) if point == "checkpoint write" else 0.0
        trial.plant(*(Plant(point, call=call, delay_s=delay_s) for call in calls))
        with trial.start() as run:
            trial.ends(run)

    return inject


def killed_as_the_result_is_renamed(trial: Trial) -> None:
    trial.plant(Plant("result rename"))
    with trial.start() as run:
        trial.ends(run)


def killed_while_restarting(trial: Trial) -> None:
    """A death, and within the restart that follows another, before the first step; three times."""
    with trial.start() as run:
        for _ in range(3):
            trial.until_a_later_moment(run)
            before = {worker.pid for worker in run.workers().values()}
            kill_a_worker(trial, run)
            run.until(lambda: bool(new_workers(run, before)))  # noqa: B023 - it is called here
            time.sleep(trial.draw.uniform(0.0, 0.3))
            kill_a_worker(trial, run)
        trial.ends(run)


def new_workers(run: Started, before: set[int]) -> set[int]:
    """Process numbers of workers that were not there before."""
    return {worker.pid for worker in run.workers().values()} - before


def killed_thirty_times(trial: Trial) -> None:
    """A drawn rank: at 20 drawn steps, and after 10 of these again within the restart."""
    goals = sorted(trial.draw.sample(range(1, STEPS - 3), 20))
    twice = trial.draw.sample(goals, 10)
    with trial.start() as run:
        for goal in goals:
            trial.until_step(run, goal)
            time.sleep(trial.draw.uniform(0.0, 0.02))
            kill_a_worker(trial, run)
            if goal in twice:
                time.sleep(trial.draw.uniform(0.0, 0.5))
                kill_a_worker(trial, run)
        trial.ends(run)


def kill_a_worker(trial: Trial, run: Started) -> None:
    """Kills the worker of a drawn rank that is there, or the next one to be."""
    victim = run.worker(trial.draw.randrange(WORKERS))
    with suppress(psutil.NoSuchProcess):
        victim.kill()
        trial.injected += 1


def launcher_killed(trial: Trial) -> None:
    """The launcher alone, three times; at once the same command is given again."""
    for _ in range(3):
        with trial.start() as run:
            trial.until_a_later_moment(run)
            run.process.kill()
            trial.ends(run, -signal.SIGKILL)
            trial.injected += 1


def everything_killed(trial: Trial) -> None:
    """All processes of the command together, also while they start; three times.

    What they have left in memory is lost with them, or not.
    """
    for _ in range(3):
        with trial.start() as run:
            if trial.draw.random() < 0.7:
                trial.until_a_later_moment(run)
            else:
                time.sleep(trial.draw.uniform(0.0, 2.0))
            kill_all(run)
            trial.ends(run, -signal.SIGKILL)
            trial.injected += 1
        if trial.draw.random() < 0.5:
            SnapshotFolder(trial.run).remove()


def kill_all(run: Started) -> None:
    """As a power cut does: none of them can act on the end of another."""
    launcher = psutil.Process(run.process.pid)
    launcher.suspend()
    below = launcher.children(recursive=True)
    for process in (*below, launcher):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def fork_server_killed(trial: Trial) -> None:
    """The process that workers are forked from."""
    with trial.start() as run:
        trial.until_a_moment(run)
        (server,) = {worker.ppid() for worker in run.workers().values()}
        psutil.Process(server).kill()
        trial.injected += 1
        run.until(lambda: len(named(trial.run, "resume")) == 1)
        trial.ends(run)


def stood_still(trial: Trial) -> None:
    """A drawn worker stands still for a moment, and later another one for good."""
    with trial.start("--run.hang-timeout-s", 5) as run:
        for is_for_good in (False, True):
            trial.until_a_later_moment(run)
            victim = run.worker(trial.draw.randrange(WORKERS))
            victim.suspend()
            trial.injected += 1
            if not is_for_good:
                time.sleep(trial.draw.uniform(0.0, 2.0))
                victim.resume()
        run.until(lambda: not victim.is_running())
        trial.ends(run)
