"""How the `distrain` command ends: each exit code, once, with what status.json says of it.

Which faults are worth another start is seen here too: those of 69 alone are.
"""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distrain.errors import ExitCode
from tests.conftest import ROOT, TIMEOUT_S, Completed, clean_environment
from tests.run_folders import last_step, named, outcome, status
from tests.started import (
    FAULTY_STEPS,
    JOB,
    builds,
    to_end_faulty,
    train,
    train_faulty,
    unbroken_faulty,
)

Run = Callable[..., Completed]

SHORT = ("--training.epochs", 1)


def test_the_codes_are_those_that_schedulers_are_told_of() -> None:
    """From the design; 130 is what a shell calls Ctrl-C."""
    told = {0, 64, 65, 69, 70, 74, 75, 78, 130}
    assert {int(code) for code in ExitCode} == told
    table = (ROOT / "README.md").read_text().partition("| exit code | meaning |")[2]
    assert {code for code in told if f"| {code}" in table} == told


def test_0_for_a_run_that_is_done(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with train_faulty(digits, folder, 1, *SHORT) as run:
        assert (run.ends(), run.said) == (0, "")
    said = status(folder)
    assert (said["state"], said["reason"], said["exit_code"]) == ("done", "finished", 0)
    assert named(folder, "end")[-1]["exit_code"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_0_also_where_a_signal_comes_while_python_ends(number: signal.Signals) -> None:
    program = (
        "import atexit, os, sys, launch.main\n"
        f"atexit.register(os.kill, os.getpid(), {number:d})\n"
        "sys.argv[1:] = ['--version']\n"
        "launch.main.command()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean_environment(), timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0


def test_0_for_a_run_that_has_stopped_early(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    rule = ("--early-stopping.monitor", "loss", "--early-stopping.mode", "max")
    to_end_faulty(digits, folder, *rule)
    said = status(folder)
    assert (said["state"], said["reason"], said["exit_code"]) == ("done", "stopped early", 0)
    assert last_step(folder) == 12 < FAULTY_STEPS


def test_64_for_wrong_usage(distrain: Run, tmp_path: Path) -> None:
    done = distrain("train", JOB, "--max-restarts", "-1", cwd=tmp_path)
    assert done.returncode == 64
    assert done.stderr.strip() == "distrain: --max-restarts is -1; give 0 or more"
    assert list(tmp_path.iterdir()) == []


def test_65_for_data_that_is_missing(distrain: Run, tmp_path: Path) -> None:
    done = distrain("train", JOB, "--data.path", tmp_path / "gone", cwd=tmp_path)
    assert done.returncode == 65
    assert f"no data set at {tmp_path / 'gone'}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_65_for_a_shard_that_a_worker_finds_damaged_which_is_not_tried_again(
    digits: Path, tmp_path: Path
) -> None:
    data, folder = tmp_path / "digits", tmp_path / "run"
    shutil.copytree(digits, data)
    shard = sorted((data / "validation").iterdir())[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with train(data, folder, 2, *SHORT, "--data.no-verify") as run:
        assert run.ends() == 65, run.said
    assert f"shard {shard} " in run.said
    assert "Traceback" not in run.said
    assert "restart" not in run.said
    assert not folder.exists()


def test_69_for_a_worker_that_is_lost_more_often_than_restarts_were_granted(
    digits: Path, tmp_path: Path
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": "1:kill:4", "CALLS": str(calls)}
    with train_faulty(digits, folder, 2, "--max-restarts", 1, **fault) as run:
        assert run.ends() == 69, run.said
    assert run.said.splitlines() == [
        "distrain (rank 1): worker 1 was killed by SIGKILL",
        "distrain: all workers start again (restart 1 of 1)",
        "distrain (rank 1): worker 1 was killed by SIGKILL",
    ]
    said = status(folder)
    assert (said["state"], said["exit_code"]) == ("failed", 69)
    assert said["reason"] == "worker 1 was killed by SIGKILL"
    assert builds(calls) == 2
    logs = {path.name: path.read_text() for path in (folder / "logs").iterdir()}
    assert set(logs) == {"start-0001-rank-0.log", "start-0002-rank-0.log"}, "rank 1 wrote nothing"
    assert all("2 micro-batches of 128" in log for log in logs.values())
    assert to_end_faulty(digits, folder) == unbroken_faulty(digits)


@pytest.mark.parametrize("workers", [1, 2])
def test_70_for_a_model_that_raises_which_is_not_tried_again(
    digits: Path, tmp_path: Path, workers: int
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": f"{workers - 1}:raise:4", "CALLS": str(calls)}
    with train_faulty(digits, folder, workers, **fault) as run:
        assert run.ends() == 70, run.said
    assert run.said.count("ValueError: planted in the model") == 1
    assert run.said.startswith(f"distrain{' (rank 1)' * (workers - 1)}: Traceback")
    assert "restart" not in run.said
    assert builds(calls) == 1
    said = status(folder)
    assert (said["state"], said["exit_code"]) == ("failed", 70)
    assert "planted in the model" in said["reason"]


def test_74_for_a_run_folder_that_cannot_be_made(digits: Path) -> None:
    folder = Path("/proc/distrain-run")
    with train(digits, folder, 2, *SHORT) as run:
        assert run.ends() == 74, run.said
    assert run.said.startswith(f"distrain: the run folder {folder} cannot be written")
    assert len(run.lines) == 1


def test_75_for_a_run_that_was_stopped(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with train_faulty(digits, folder, 1, STEP_S="0.1") as run:
        run.until(lambda: last_step(folder) >= 2)
        run.process.send_signal(signal.SIGUSR1)
        assert run.ends() == 75, run.said
    said = status(folder)
    assert (said["state"], said["exit_code"]) == ("stopped", 75)
    assert named(folder, "end")[-1]["exit_code"] == 75


def test_78_for_a_job_that_contradicts_itself(distrain: Run, tmp_path: Path) -> None:
    done = distrain("train", JOB, "--optimizer.momentum", 0, cwd=tmp_path)
    assert done.returncode == 78
    said = (
        "distrain: optimizer.nesterov is true and optimizer.momentum is 0.0; give a momentum "
        "above 0, or leave nesterov out"
    )
    assert done.stderr.strip() == said
    assert list(tmp_path.iterdir()) == []


def test_78_for_another_jobs_folder_which_a_worker_finds_and_nobody_tries_again(
    digits: Path, tmp_path: Path
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    before = to_end_faulty(digits, folder, *SHORT), status(folder)
    files = sorted(folder.rglob("*"))
    other = (*SHORT, "--run.seed", 1)
    with train_faulty(digits, folder, 2, *other, CALLS=str(calls)) as run:
        assert run.ends() == 78, run.said
    assert run.said.startswith(f"distrain: the run folder {folder} belongs to another job")
    assert "restart" not in run.said
    assert builds(calls) == 1
    assert (outcome(folder), status(folder)) == before
    assert sorted(folder.rglob("*")) == files
