"""Runs whose number of workers changes under way: the same bits, and no step lost for it."""

import json
import signal
from itertools import pairwise
from pathlib import Path

import pytest

from distrain.coordinator.stops import BEGAN
from distrain.errors import UsageError
from launch.resizing import Requests, resize
from tests.run_folders import events, last_step, named, outcome, status
from tests.started import (
    Started,
    expect_stopped,
    is_training,
    random_moments,
    train,
    train_faulty,
    unbroken,
)

# Checkpoints are rare, so that a step that a change of size lost would be seen.
EVERY = 300
JOB = ("--training.epochs", 60, "--early-stopping.patience", 60, "--checkpoint.every-steps", EVERY)


def elastic(digits: Path, folder: Path, workers: str, *more: object) -> Started:
    return train(digits, folder, workers, *JOB, *more)


def test_a_run_grows_and_shrinks_as_it_is_asked_to_and_no_step_is_lost(
    digits: Path, tmp_path: Path
) -> None:
    expected, moments, folder = unbroken(digits, *JOB), random_moments(), tmp_path / "run"
    sizes = [3, 1, 2, 4]
    with elastic(digits, folder, "1:4") as run:
        for start, size in enumerate(sizes, 1):
            run.until(lambda: is_training(folder, start))  # noqa: B023 - it is called here
            goal = last_step(folder) + moments.randint(1, 8)
            run.until(lambda: last_step(folder) >= goal)  # noqa: B023
            assert f"goes on with {size} worker" in resize(folder, size)
            run.until(lambda: len(named(folder, "workers")) == start)  # noqa: B023
            assert status(folder)["workers"] == size
            assert len(run.workers()) == size
        assert run.ends() == 0, run.said
    assert outcome(folder) == expected
    assert [event["text"] for event in named(folder, "workers")] == [
        f"the number of workers is {size} now, was {before}"
        for before, size in pairwise([4, *sizes])
    ]
    saved = [event["step"] for event in named(folder, "checkpoint")]
    left_at = [event["step"] for event in named(folder, "resume")]
    assert [step for step in saved if step % EVERY or step in left_at] == left_at, (
        "each went on where it was saved"
    )
    assert status(folder)["starts"] == 1 + len(sizes)
    assert "restart" not in run.said


def test_a_place_that_loses_its_worker_twice_with_no_step_between_is_given_up(
    digits: Path, tmp_path: Path
) -> None:
    folder, hold = tmp_path / "run", tmp_path / "hold"
    job = ("--training.epochs", 400, "--training.micro-batch", 64)
    with train_faulty(digits, folder, "2:3", *job, HOLD=str(hold), STEP_S="0.05") as run:
        run.until(lambda: is_training(folder, 1))
        hold.touch()  # from now on no start does a step
        for number in (1, 2):
            run.worker(1).kill()
            run.until(lambda: f"(restart {number} of 10)" in run.said)  # noqa: B023
        assert "place 1 was lost twice with no step between, and is given up: 2 workers" in run.said
        hold.unlink()
        run.until(lambda: status(folder)["workers"] == 2 and len(run.workers()) == 2)
        run.until(lambda: is_training(folder, len(named(folder, "resume")) + 1))
        hold.touch()
        # At 2 workers of at least 2 none is given up any more.
        for number in (3, 4):
            run.worker(0).kill()
            run.until(lambda: f"(restart {number} of 10)" in run.said)  # noqa: B023
        hold.unlink()
        run.until(lambda: len(run.workers()) == 2)
        run.process.send_signal(signal.SIGTERM)
        assert run.ends() == 75
    assert run.said.count("is given up") == 1


def test_a_run_that_is_stopped_while_its_size_changes_stops(digits: Path, tmp_path: Path) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    slow = {"STEP_S": "0.5", "CALLS": str(calls)}
    with train_faulty(digits, folder, "1:2", **slow) as run:
        run.until(lambda: is_training(folder, 1))
        resize(folder, 1)
        run.process.terminate()
        assert run.ends() == 75, run.said
    assert status(folder)["state"] == "stopped"


def test_a_size_that_never_ends_its_step_costs_that_step_alone(
    digits: Path, tmp_path: Path
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": "all:hang:7", "CALLS": str(calls)}
    with train_faulty(digits, folder, "1:2", "--run.grace-s", 8, **fault) as run:
        run.until(lambda: last_step(folder) == 7)
        resize(folder, 1)
        run.until(lambda: bool(named(folder, "resume")))
    assert len(named(folder, "workers")) == 1
    assert [event["step"] for event in named(folder, "resume")] == [7]


def test_requests_that_can_not_be_are_refused_by_name(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(UsageError, match="there is no run in"):
        resize(folder, 2)
    with elastic(digits, folder, "1:2") as run:
        run.until(lambda: is_training(folder, 1))
        with pytest.raises(UsageError, match=r"3 workers are asked for; .* started with 1:2"):
            resize(folder, 3)
        assert "has 2 workers already" in resize(folder, 2)
        # Another launch's request is nobody's.
        (folder / "resize.json").write_text('{"launch": "another", "workers": 1}')
        step = last_step(folder)
        run.until(lambda: last_step(folder) > step + 5)
        assert (folder / "resize.json").exists()
        run.process.terminate()
        expect_stopped(run, folder, "SIGTERM")
    with pytest.raises(UsageError, match=r"does not go on now \(stopped\)"):
        resize(folder, 1)
    with train(digits, folder, 2, *JOB) as run:
        run.until(lambda: is_training(folder, 2))
        with pytest.raises(UsageError, match="with a fixed number of workers"):
            resize(folder, 1)
    assert not named(folder, "workers")
    assert [event["step"] for event in events(folder) if event["event"] == "resume"]


def test_a_request_that_comes_while_another_is_taken_is_taken_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, later = tmp_path / "resize.json", iter([3])
    monkeypatch.setenv(BEGAN, "this launch")

    def ask(workers: int) -> None:
        path.write_text(json.dumps({"launch": "this launch", "workers": workers}))

    def read(path: Path) -> bytes:
        content = path.read_text().encode()
        for workers in later:
            ask(workers)
        return content

    ask(2)
    monkeypatch.setattr(Path, "read_bytes", read)
    requests = Requests(tmp_path)
    assert requests.take() == 3
    assert requests.take() is None
    assert list(tmp_path.iterdir()) == []
