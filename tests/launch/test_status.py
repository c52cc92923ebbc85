"""`distrain status` tells a person and a script how a run stands and how it ended."""

import fcntl
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distrain.coordinator.run_status import read_status
from launch.readable import duration
from tests.alone import distrain_alone
from tests.conftest import ROOT, Completed

Run = Callable[..., Completed]


def write_run(
    folder: Path, state: str, events: list[dict[str, Any]], **told: Any
) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    status = {"state": state, "epochs": 3, "steps": 30, "starts": 1, "pid": 7, **told}
    (folder / "status.json").write_text(json.dumps({"host": socket.gethostname(), **status}))
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines + '{"event": "st')
    (folder / "lock").touch()
    return status


def step_event(step: int, time: float, loss: float = 0.5) -> dict[str, Any]:
    return {
        "event": "step",
        "step": step,
        "epoch": 1 + (step - 1) // 10,
        "loss": loss,
        "time": time,
    }


@contextmanager
def held(lock: Path) -> Iterator[None]:
    with lock.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_what_happened_to_a_run_is_told_with_its_times(
    tmp_path: Path, distrain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "UTC")
    events = [
        {"event": "begin", "time": 0.0},
        step_event(1, 1.0),
        {"event": "restart", "text": "worker 1 was killed by SIGKILL", "time": 2.0},
        {"event": "resume", "text": "going on after step 1, from memory", "step": 1, "time": 3.0},
        step_event(2, 4.0),
        {"event": "phases", "text": "", "step": 2, "time": 4.5},
        {"event": "damaged", "text": "word " * 20 + "\n  and a second line", "time": 5.0},
        {"event": "end", "reason": "stopped by SIGTERM", "exit_code": 75, "time": 6.0},
    ]
    run = tmp_path / "run"
    write_run(run, "stopped", events, reason="stopped by SIGTERM", exit_code=75)
    assert [at for at, _ in read_status(run).life] == [2.0, 3.0, 5.0, 6.0]
    lines = distrain("status", run).stdout.splitlines()
    assert lines[-5:] == [
        "  1970-01-01 00:00:02  worker 1 was killed by SIGKILL",
        "  1970-01-01 00:00:03  going on after step 1, from memory",
        "  1970-01-01 00:00:05  " + ("word " * 11).strip(),
        " " * 23 + ("word " * 9).strip(),
        "  1970-01-01 00:00:06  stopped by SIGTERM",
    ]


def test_a_running_run_tells_its_step_speed_and_the_time_left(
    tmp_path: Path, distrain: Run
) -> None:
    # The speed is that of this start: the 1,000 s before it do not count.
    events = [
        {"event": "begin", "time": 0.0},
        step_event(11, 0.0),
        {"event": "epoch", "epoch": 1, "step": 10, "loss": 0.75, "val_loss": None, "time": 1.0},
        {"event": "begin", "time": 1000.0},
        step_event(12, 1001.0),
        step_event(13, 1001.5),
        step_event(14, 1002.0, loss=0.25),
        {"event": "checkpoint", "step": 14, "time": 1002.1},
    ]
    write_run(tmp_path / "run", "running", events, starts=2)
    (tmp_path / "run" / "checkpoints" / "step-000000014").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "damaged-step-000000020-1").mkdir()
    with held(tmp_path / "run" / "lock"):
        status = read_status(tmp_path / "run")
        shown = distrain("status", tmp_path / "run")
    assert (status.state, status.step, status.steps, status.epoch) == ("running", 14, 30, 2)
    assert (status.steps_per_s, status.seconds_left) == (2.0, 8.0)
    assert (status.loss, status.checkpoint_step) == (0.25, 14)
    assert shown.stdout.splitlines() == [
        f"{tmp_path / 'run'}: running on {socket.gethostname()}, process 7",
        "  step 14 of 30, epoch 2 of 3, loss 0.2500, start 2",
        "  2.0 steps/s, about 8 s left",
        "  training    loss 0.7500",
        "  validation  loss nan",
        "  newest checkpoint: step 14",
    ]


def test_a_run_whose_process_is_gone_is_lost(tmp_path: Path) -> None:
    write_run(tmp_path, "running", [step_event(5, 1.0)])
    assert read_status(tmp_path).state == "lost"
    write_run(tmp_path, "running", [step_event(5, 1.0)], host="another")
    assert read_status(tmp_path).state == "running"


def test_a_run_that_ended_tells_how_to_a_person_and_to_a_script(
    tmp_path: Path, digits: Path, distrain: Run
) -> None:
    job = ["train", ROOT / "examples" / "digits.toml", "--data.path", digits]
    done = distrain_alone(*job, "--run.dir", tmp_path / "run", "--training.epochs", 1)
    assert done.returncode == 0, done.stderr
    told = distrain("status", tmp_path / "run").stdout
    assert f"{tmp_path / 'run'}: done: finished (exit code 0)\n" in told
    assert "  step 6 of 6, epoch 1 of 1, loss " in told
    assert f"  result: {tmp_path / 'run' / 'model.safetensors'}\n" in told
    status = json.loads(distrain("status", tmp_path / "run", "--json").stdout)
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, 6)
    assert set(status["scores"]) >= {"loss", "val_loss", "val_accuracy"}


def test_a_failed_run_tells_why(tmp_path: Path, distrain: Run) -> None:
    write_run(tmp_path, "failed", [step_event(5, 1.0)], reason="the loss is bad", exit_code=70)
    told = distrain("status", tmp_path).stdout
    assert told.startswith(f"{tmp_path}: failed: the loss is bad (exit code 70)\n")
    assert "to go on: the same command again" in told


def test_a_stopped_run_says_so_once(tmp_path: Path, distrain: Run) -> None:
    write_run(tmp_path, "stopped", [step_event(5, 1.0)], reason="stopped by SIGTERM", exit_code=75)
    told = distrain("status", tmp_path).stdout
    assert told.startswith(f"{tmp_path}: stopped by SIGTERM (exit code 75)\n")


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"state": '])
def test_a_folder_without_a_run_is_wrong_usage(
    tmp_path: Path, distrain: Run, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    told = distrain("status", tmp_path)
    assert told.returncode == 64
    assert "Traceback" not in told.stderr
    assert ("there is no run in" if content is None else "cannot be read") in told.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89.0, "89 s"),
        (91.0, "2 min"),
        (3600.0, "60 min"),
        (5400.0, "1 h 30 min"),
        (7200.0, "2 h"),
        (86400.0 * 3 + 3600.0 * 4, "3 d 4 h"),
    ],
)
def test_a_time_is_told_in_the_units_of_a_person(seconds: float, text: str) -> None:
    assert duration(seconds) == text
