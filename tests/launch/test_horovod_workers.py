"""Workers on Horovod: the same bits, exit codes, stops and restarts as on torch elastic."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import PROGRAMS
from tests.run_folders import last_step, named, outcome, status
from tests.started import (
    STOPPED,
    Started,
    builds,
    expect_stopped,
    has_line,
    is_training,
    to_end_faulty,
    train,
    train_faulty,
    unbroken,
    unbroken_faulty,
)

HOROVOD = ("--parallel.backend", "horovod")
SHORT = ("--training.epochs", 2)
LONG = ("--training.epochs", 50, "--early-stopping.patience", 50, "--checkpoint.every-steps", 5)

GONE_S, BUSY_S = 2.0, 10.0
"""What is promised, and what a busy machine may add to it."""

pytestmark = pytest.mark.horovod


@pytest.mark.parametrize(
    ("workers", "more"), [(1, ()), (2, ("--parallel.shard-optimizer",)), (3, ())]
)
def test_the_bits_are_those_of_the_torch_backend(
    digits: Path, tmp_path: Path, workers: int, more: tuple[str, ...]
) -> None:
    folder = tmp_path / "run"
    with train(digits, folder, workers, *SHORT, *HOROVOD, *more) as run:
        assert (run.ends(), run.said) == (0, "")
    assert outcome(folder) == unbroken(digits, *SHORT)


def test_65_for_a_shard_that_a_worker_finds_damaged(digits: Path, tmp_path: Path) -> None:
    data, folder = tmp_path / "digits", tmp_path / "run"
    shutil.copytree(digits, data)
    shard = sorted((data / "validation").iterdir())[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with train(data, folder, 2, *SHORT, "--data.no-verify", *HOROVOD) as run:
        assert run.ends() == 65, run.said
    assert f"shard {shard} " in run.said
    assert "Traceback" not in run.said
    assert "restart" not in run.said


def test_69_for_a_worker_that_is_lost_too_often_and_torch_goes_on(
    digits: Path, tmp_path: Path
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": "1:kill:4", "CALLS": str(calls)}
    with train_faulty(digits, folder, 2, "--max-restarts", 1, *HOROVOD, **fault) as run:
        assert run.ends() == 69, run.said
    assert run.said.splitlines() == [
        "distrain (rank 1): worker 1 was killed by SIGKILL",
        "distrain: all workers start again (restart 1 of 1)",
        "distrain (rank 1): worker 1 was killed by SIGKILL",
    ]
    said = status(folder)
    assert (said["state"], said["exit_code"]) == ("failed", 69)
    assert builds(calls) == 2
    assert to_end_faulty(digits, folder) == unbroken_faulty(digits)


def test_70_for_a_model_that_raises(digits: Path, tmp_path: Path) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": "1:raise:4", "CALLS": str(calls)}
    with train_faulty(digits, folder, 2, *HOROVOD, **fault) as run:
        assert run.ends() == 70, run.said
    assert run.said.count("ValueError: planted in the model") == 1
    assert run.said.startswith("distrain (rank 1): Traceback")
    assert builds(calls) == 1
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("failed", 70)


@pytest.mark.parametrize(
    ("code", "error"),
    [(64, "distrain.errors.UsageError"), (74, "data_pipeline.errors.StorageError")],
)
def test_64_and_74_for_what_a_worker_says_is_so(tmp_path: Path, code: int, error: str) -> None:
    module, _, name = error.rpartition(".")
    script = tmp_path / "script.py"
    script.write_text(f"from {module} import {name}\nraise {name}('planted')\n")
    options = ("--workers", 2, "--backend", "horovod", "--max-restarts", 1)
    with Started("launch", *options, script, cwd=tmp_path) as run:
        assert run.ends() == code, run.said
    assert run.said in ("distrain: planted", "distrain (rank 1): planted")


def test_69_for_a_worker_that_ends_early(tmp_path: Path) -> None:
    program = (PROGRAMS / "failing.py", "end", 1, "horovod")
    arguments = ("launch", "--workers", 2, "--backend", "horovod", *program)
    with Started(*arguments, cwd=tmp_path) as run:
        assert run.ends() == 69, run.said
    assert "the connection to another worker was lost; did it end early?" in run.said
    assert "Traceback" not in run.said


def test_stopped_on_horovod_and_then_on_torch_a_run_ends_at_the_same_bits(
    digits: Path, tmp_path: Path
) -> None:
    job, folder = ("--training.epochs", 24, "--checkpoint.every-steps", 10), tmp_path / "run"
    stopped_at = []
    for workers, number, backend in ((3, signal.SIGTERM, HOROVOD), (2, signal.SIGINT, ())):
        with train(digits, folder, workers, *job, *backend) as run:
            goal = last_step(folder) + 7
            run.until(lambda: last_step(folder) >= goal)  # noqa: B023 - it is called here
            run.process.send_signal(number)
            expect_stopped(run, folder, number.name)
        stopped_at.append(last_step(folder))
    with train(digits, folder, 2, *job, *HOROVOD) as run:
        assert (run.ends(), run.said) == (0, "")
    assert outcome(folder) == unbroken(digits, *job)
    assert [event["step"] for event in named(folder, "resume")] == stopped_at


def test_a_signal_to_any_worker_or_while_they_start_stops_all(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with train(digits, folder, 2, *LONG, *HOROVOD) as run:
        run.until(lambda: last_step(folder) >= 3)
        run.worker(1).send_signal(signal.SIGTERM)
        expect_stopped(run, folder, "SIGTERM")
    with train(digits, folder, 2, *LONG, *HOROVOD) as run:
        run.until(lambda: bool(run.workers()))
        run.process.terminate()
        assert run.ends() == 75, run.said
        assert run.said == f"distrain: stopped by SIGTERM, {STOPPED}"


def test_a_killed_worker_costs_a_restart_and_no_bit(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with train(digits, folder, 3, *LONG, *HOROVOD) as run:
        for start, rank in ((1, 2), (2, 0)):
            run.until(lambda: is_training(folder, start) and last_step(folder) > 6)  # noqa: B023
            run.worker(rank).kill()
            run.until(lambda: f"restart {start} of 10" in run.said)  # noqa: B023
            assert f"worker {rank} was killed by SIGKILL" in run.said
        assert run.ends() == 0, run.said
    assert outcome(folder) == unbroken(digits, *LONG)
    assert status(folder)["starts"] == 3


def test_a_second_ctrl_c_ends_at_once(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fault = {"FAULT": "all:hang:12", "CALLS": str(tmp_path / "calls")}
    with train_faulty(digits, folder, 2, *HOROVOD, **fault) as run:
        run.until(lambda: has_line(tmp_path / "calls-0", "hang"))
        run.ctrl_c()
        time.sleep(0.5)  # as a person does; two signals at once are one
        run.ctrl_c()
        assert run.ends() == 130, run.said
    assert "interrupted again" in run.said


def test_nothing_outlives_a_launcher_that_is_killed(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with train(digits, folder, 2, *LONG, *HOROVOD, "--training.epochs", 5000) as run:
        run.until(lambda: last_step(folder) > 6)
        left = list(run.workers().values())
        assert len(left) == 2
        run.process.kill()
        run.process.wait()
        for worker in left:
            worker.wait(timeout=GONE_S + BUSY_S)
