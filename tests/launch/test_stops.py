"""Runs that are asked to stop: they save, exit with 75, and go on to the same bits."""

import os
import pty
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from tests.run_folders import last_step, named, outcome, status
from tests.started import (
    FAULTY_STEPS,
    LIMIT_S,
    STOPPED,
    expect_stopped,
    has_line,
    random_moments,
    to_end,
    to_end_faulty,
    train,
    train_faulty,
    unbroken,
    unbroken_faulty,
)
from tests.started import JOB as JOB_FILE

# Far more steps than are asked for, so that no run ends before it is stopped.
JOB = ("--training.epochs", 30, "--checkpoint.every-steps", 10)
GRACE_S = 8.0


def test_stopped_with_4_workers_and_with_1_a_run_ends_with_3_at_the_same_bits(
    digits: Path, tmp_path: Path
) -> None:
    expected, moments, folder = unbroken(digits, *JOB), random_moments(), tmp_path / "run"
    stopped_at = []
    for workers, number in ((4, signal.SIGTERM), (1, signal.SIGINT)):
        with train(digits, folder, workers, *JOB) as run:
            goal = last_step(folder) + moments.randint(1, 25)
            run.until(lambda: last_step(folder) >= goal)  # noqa: B023 - it is called here
            time.sleep(moments.uniform(0.0, 0.05))
            run.process.send_signal(number)
            expect_stopped(run, folder, number.name)
        stopped_at.append(last_step(folder))
    with train(digits, folder, 3, *JOB) as run:
        assert (run.ends(), run.said) == (0, "")
    assert outcome(folder) == expected
    assert [event["step"] for event in named(folder, "resume")] == stopped_at
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("done", 0)


def test_a_signal_to_any_worker_stops_all_of_them(digits: Path, tmp_path: Path) -> None:
    folder, stopped_at = tmp_path / "run", []
    for number, rank in ((signal.SIGUSR1, 0), (signal.SIGTERM, 1)):
        goal = last_step(folder) + 3
        with train(digits, folder, 2, *JOB) as run:
            run.until(lambda: last_step(folder) >= goal)  # noqa: B023 - it is called here
            run.worker(rank).send_signal(number)
            expect_stopped(run, folder, number.name)
        stopped_at.append(last_step(folder))
    assert to_end(digits, folder, *JOB) == unbroken(digits, *JOB)
    assert [event["step"] for event in named(folder, "resume")] == stopped_at


@pytest.mark.parametrize(
    ("workers", "is_kept", "state", "code"), [(2, False, "stopped", 75), (1, True, "done", 0)]
)
def test_a_run_whose_terminal_is_closed_has_saved_or_goes_on_where_it_is_to_be_kept(
    digits: Path, tmp_path: Path, *, workers: int, is_kept: bool, state: str, code: int
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "launch.main", "train", JOB_FILE, "--workers", workers]
    command += ["--data.path", digits, "--run.dir", folder]
    command += ["--training.epochs", 20 if is_kept else 500]
    pid, terminal = pty.fork()
    if pid == 0:
        if is_kept:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as a shell's `disown` does
        os.execve(sys.executable, [str(word) for word in command], clean_environment())
    os.set_blocking(terminal, False)
    end = time.monotonic() + LIMIT_S
    while last_step(folder) < 3:
        assert time.monotonic() < end
        with suppress(BlockingIOError):
            os.read(terminal, 1 << 16)
        time.sleep(0.01)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    said = status(folder)
    assert (said["state"], said["step"]) == (state, last_step(folder))
    assert said["reason"] == ("finished" if is_kept else "stopped by SIGHUP")


def test_a_signal_while_the_workers_start_stops_the_run_without_a_traceback(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with train(digits, folder, 2, *JOB) as run:
        run.worker(1).send_signal(signal.SIGTERM)
        assert run.ends() == 75, run.said
        assert run.said.endswith(STOPPED)
        assert "Traceback" not in run.said
    with train(digits, folder, 2, *JOB) as run:
        run.until(lambda: bool(run.workers()))
        run.process.terminate()
        assert run.ends() == 75, run.said
        assert run.said == f"distrain: stopped by SIGTERM, {STOPPED}"
    assert to_end(digits, folder, *JOB) == unbroken(digits, *JOB)


def test_the_time_limit_stops_a_run_which_another_limit_lets_go_on(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with train_faulty(digits, folder, 2, "--run.max-time-s", 6, STEP_S="0.5") as run:
        expect_stopped(run, folder, "the time limit")
        assert time.monotonic() - run.began >= 6.0
    assert last_step(folder) < FAULTY_STEPS
    assert to_end_faulty(digits, folder, "--run.max-time-s", 600) == unbroken_faulty(digits)


@pytest.mark.parametrize(
    ("workers", "hanging", "told", "more"),
    [
        (1, "all", "launcher", []),
        (2, "all", "launcher", []),
        (2, "0", "worker", []),
        (2, "0", "launcher", ["--parallel.shard-optimizer"]),
    ],
)
def test_a_step_that_never_ends_costs_that_step_alone(
    digits: Path, tmp_path: Path, workers: int, hanging: str, told: str, more: list[str]
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": f"{hanging}:hang:7", "CALLS": str(calls)}
    options = ("--run.grace-s", GRACE_S, *more)
    with train_faulty(digits, folder, workers, *options, **fault) as run:
        run.until(lambda: has_line(tmp_path / "calls-0", "hang"))
        run.until(lambda: last_step(folder) == 7)
        (run.worker(1) if told == "worker" else run.process).send_signal(signal.SIGTERM)
        # Rank 0, which hangs, knows of a signal to its peer no more than that there was one. It is
        # not killed: then it would be told that nothing was saved.
        expect_stopped(run, folder, {"launcher": "SIGTERM"}.get(told, "a signal to another worker"))
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-000000007"]
    ended = to_end_faulty(digits, folder)
    assert [event["step"] for event in named(folder, "resume")] == [7]
    assert ended == unbroken_faulty(digits)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_second_ctrl_c_ends_at_once_and_leaves_the_last_checkpoint(
    digits: Path, tmp_path: Path, workers: int
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": "all:hang:12", "CALLS": str(calls)}
    with train_faulty(digits, folder, workers, "--checkpoint.snapshot-every", 0, **fault) as run:
        run.until(lambda: has_line(tmp_path / "calls-0", "hang"))
        # It is written while training goes on.
        run.until((folder / "checkpoints" / "step-000000010").exists)
        run.ctrl_c()
        time.sleep(0.5)  # as a person does; two signals at once are one
        asked = time.monotonic()
        run.ctrl_c()
        assert run.ends() == 130, run.said
        assert time.monotonic() - asked < 10.0, "after half of 30 s it would be saved"
        again = "distrain: interrupted again: what came after the last checkpoint is lost"
        assert run.said == again
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("failed", 130)
    ended = to_end_faulty(digits, folder)
    assert [event["step"] for event in named(folder, "resume")] == [10]
    assert ended == unbroken_faulty(digits)


def test_a_stop_does_not_wait_for_the_end_of_an_evaluation_which_is_done_again(
    digits: Path, tmp_path: Path
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    # 360 rows are three passes of 128 rows at most: rank 0 would do two.
    slow = {"EVALUATION_S": "3", "CALLS": str(calls)}
    with train_faulty(digits, folder, 2, **slow) as run:
        run.until(lambda: has_line(tmp_path / "calls-0", "evaluation"))
        run.process.terminate()
        expect_stopped(run, folder, "SIGTERM")
    assert (tmp_path / "calls-0").read_text().split() == ["build", "evaluation"]
    assert (last_step(folder), named(folder, "epoch")) == (6, [])
    ended = to_end_faulty(digits, folder)
    assert [event["step"] for event in named(folder, "resume")] == [6]
    assert ended == unbroken_faulty(digits)
