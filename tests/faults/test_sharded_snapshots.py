"""A sharded run's parts in the hosts' memory, through deaths: a step done twice at most.

The oracle is that of all faults: weights, log and samples of the run that nothing happened to, on
one worker. Checkpoints are rare here, so that what is not in memory is seen to be missed.
"""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distrain.coordinator.host_memory import SnapshotFolder
from distrain.coordinator.run_layout import CHECKPOINTS, steps_in
from tests.conftest import PROGRAMS, Completed
from tests.faults.deaths import kill_all
from tests.faults.job import SHARDED, digits_with_rows
from tests.faults.trial import WORKERS, Plant, Trial
from tests.run_folders import last_step, named, told
from tests.started import random_moments

RARE = ("--checkpoint.snapshot-every", 1, "--checkpoint.every-steps", 25)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_with_rows(tmp_path_factory.mktemp("digits"))


@pytest.fixture
def moments() -> random.Random:
    return random_moments()


def begun(numbered: Path, folder: Path, moments: random.Random) -> Trial:
    folder.mkdir()
    return Trial(numbered, folder, moments, SHARDED)


def part_of(trial: Trial, rank: int) -> list[Path]:
    """The slots of one worker's parts."""
    return list(SnapshotFolder(trial.run).path.glob(f"start-*/part-{rank}-of-*"))


def test_a_worker_that_dies_at_any_moment_costs_one_step_at_most(
    numbered: Path, tmp_path: Path, moments: random.Random
) -> None:
    """Each rank in the middle of a copy, when some have the next state and some the last one's."""
    trial = begun(numbered, tmp_path / "trial", moments)
    # Not in the first copies, so that there is one to go on from.
    trial.plant(*(Plant("copy", rank, moments.randint(3, 9)) for rank in range(WORKERS)))
    with trial.start(*RARE) as run:
        run.until(lambda: trial.done() == WORKERS)
        goal = last_step(trial.run) + 3
        run.until(lambda: last_step(trial.run) >= goal)
        time.sleep(moments.uniform(0.0, 0.04))
        run.worker(moments.randrange(WORKERS)).kill()
        trial.ends(run)
    resumed = [(event["source"], event["steps_again"]) for event in named(trial.run, "resume")]
    assert len(resumed) == WORKERS + 1
    assert all(source == "memory" and again <= 1 for source, again in resumed), resumed
    assert trial.conclude() <= 2 * len(resumed)  # of which one had only begun
    assert not SnapshotFolder(trial.run).path.exists()


def test_parts_in_memory_serve_another_number_of_workers_and_without_one_the_disk_does(
    numbered: Path, tmp_path: Path, moments: random.Random
) -> None:
    trial = begun(numbered, tmp_path / "trial", moments)
    stood = []
    for workers, earliest in ((3, 4), (2, 14), (3, 28)):
        with trial.start(*RARE, workers=workers) as run:
            trial.until_a_moment(run, earliest, earliest + 8)
            kill_all(run)
            trial.ends(run, -signal.SIGKILL)
        trial.injected += 1
        stood.append(last_step(trial.run))
        assert {len(part_of(trial, rank)) for rank in range(workers)} == {2}
    lost = part_of(trial, moments.randrange(3))
    for slot in lost:
        slot.unlink()
    newest = max(steps_in(trial.run / CHECKPOINTS))
    trial.conclude()
    first, second, third = named(trial.run, "resume")
    assert (first["source"], first["workers"]) == ("memory", 2)
    assert (second["source"], second["workers"]) == ("memory", 3)
    assert first["step"] >= stood[0] - 1
    assert second["step"] >= stood[1] - 1
    assert (third["source"], third["step"]) == ("disk", newest)
    assert newest < stood[2] - 1


def test_a_state_to_go_back_to_comes_back_from_memory(
    distrain: Callable[..., Completed], tmp_path: Path
) -> None:
    """A death before the run goes back to it, and another after that; no checkpoint is due."""

    def trained(name: str, workers: int, *deaths: str) -> str:
        options = ("--workers", workers, "--max-restarts", len(deaths))
        program = PROGRAMS / "sharded_going_back.py"
        ended = distrain("launch", *options, program, tmp_path / name, *deaths)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert trained("killed", 3, "4:1", "7:2") == trained("unbroken", 1)
    assert told(tmp_path / "killed") == told(tmp_path / "unbroken")
    back = [
        [(event["step"], event["bad_step"], event["rows"]) for event in named(folder, "go_back")]
        for folder in (tmp_path / "killed", tmp_path / "unbroken")
    ]
    assert back[0] == back[1]
    assert [step for step, *_ in back[0]] == [0, 0, 5, 10, 10]
    resumed = named(tmp_path / "killed", "resume")[-1]
    assert (resumed["source"], resumed["times_back"]) == ("memory", 3)
    assert resumed["step"] in (8, 9)
