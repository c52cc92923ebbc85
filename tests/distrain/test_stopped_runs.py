"""A run that is asked to stop saves the step in hand, and goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import distrain
from data_pipeline import Dataset, augment
from distrain.coordinator.checkpoint import newest_checkpoint
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.run_layout import steps_in
from distrain.coordinator.stops import (
    WATCHED,
    InterruptedAgainError,
    StoppedError,
    StopWatch,
)
from distrain.errors import ConfigError
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.replicas import weights_digest
from tests.conftest import TIMEOUT_S, Completed, clean_environment
from tests.run_folders import status, told

STEPS_PER_EPOCH, EPOCHS, CHUNKS = 6, 3, 3
LAST = STEPS_PER_EPOCH * EPOCHS

Asks = Callable[[bool, int], None]
"""Called in each forward pass: whether one of training, and its number from 1 among its kind."""


def nobody(_training: bool, _number: int) -> None:
    pass


def ask(*signals: int) -> None:
    """Sends signals to this process, each of which is heard of before the next."""
    for number in signals:
        os.kill(os.getpid(), number)
        end = time.monotonic() + 60.0
        while not _now.watch.flag:  # the watcher's thread has had no turn yet
            assert time.monotonic() < end
            time.sleep(0.002)


def in_step(step: int, *signals: int) -> Asks:
    """Asks in the first micro-batch of a step, counted from 0.

    An epoch has five steps of 8 micro-batches and one of 5, for its last 157 rows.
    """
    epochs, steps = divmod(step, STEPS_PER_EPOCH)
    first = 45 * epochs + 8 * steps + 1
    return lambda training, number: ask(*signals) if training and number == first else None


def in_evaluation(epoch: int, *signals: int) -> Asks:
    """Asks in the first chunk of an evaluation, counted from 0."""
    first = CHUNKS * epoch + 1
    return lambda training, number: ask(*signals) if not training and number == first else None


def build_net() -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout())
    return nn.Sequential(*layers, nn.Linear(144, 10))


class _Now:
    """Who asks the run under way to stop, who hears it, and the micro-batches seen so far."""

    asks: Asks
    watch: StopWatch
    calls: dict[bool, int]


_now = _Now()


@pytest.fixture(autouse=True)
def _watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `ask` know who watches for signals."""
    enter = StopWatch.__enter__

    def entered(self: StopWatch) -> StopWatch:
        _now.watch = self
        return enter(self)

    monkeypatch.setattr(StopWatch, "__enter__", entered)


def fit(digits: Path, folder: Path | None, asks: Asks = nobody, **options: Any) -> distrain.Trainer:
    """Trains; what a stop writes is the only checkpoint."""
    # What a step closes over is part of the run's identity; a module's own names are not.
    _now.asks, _now.calls = asks, {True: 0, False: 0}

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        _now.calls[model.training] += 1
        _now.asks(model.training, _now.calls[model.training])
        outputs = model(columns["image"])
        loss = nn.functional.cross_entropy(outputs, columns["label"], reduction="sum")
        return loss, len(outputs), outputs

    trainer = distrain.Trainer(
        model=build_net,
        loss=nn.CrossEntropyLoss(),
        inputs="image",
        target="label",
        run=folder,
        metrics=["accuracy"],
        micro_batch_step=run,
        progress=False,
        optimizer=lambda p: torch.optim.AdamW(p, lr=0.01),
        early_stopping=distrain.EarlyStopping("val_loss", patience=9, restore_best=True),
        **({"checkpoint": distrain.Checkpoint(every_seconds=None)} | options),
    )
    trainer.fit(
        Dataset(digits),
        Dataset(digits, "validation"),
        epochs=EPOCHS,
        global_batch=256,
        augment=[augment.Shift(1)],
    )
    return trainer


@pytest.fixture(scope="module")
def unbroken(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The digest and the folder of the run that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return weights_digest(fit(digits, folder).model), folder


def assert_stopped(folder: Path, reason: str, step: int) -> None:
    """The state after this very step is saved, whole, and the status says so."""
    assert steps_in(folder / "checkpoints")[-1] == step
    newest = newest_checkpoint(FolderStore(folder / "checkpoints"))
    assert newest is not None
    assert newest.contents.state["run"]["step"] == step
    found = status(folder)
    assert (found["state"], found["exit_code"]) == ("stopped", 75)
    assert (found["reason"], found["step"]) == (f"stopped by {reason}", step)
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("end", 75)
    assert last["reason"] == f"stopped by {reason}"
    assert not (folder / "model.safetensors").exists()


def assert_ends_as(
    digits: Path, folder: Path, unbroken: tuple[str, Path], asks: Asks = nobody
) -> None:
    """Going on leaves the bits of the unbroken run, and each step and epoch once in the log."""
    assert weights_digest(fit(digits, folder, asks).model) == unbroken[0]
    assert status(folder)["state"] == "done"
    assert told(folder) == told(unbroken[1])
    results = [(path / "model.safetensors").read_bytes() for path in (folder, unbroken[1])]
    assert results[0] == results[1]


# The run's first step; in mid-epoch; an epoch's last; an epoch's first; the run's last.
@pytest.mark.parametrize("step", [0, 3, 5, 6, 11, LAST - 1])
def test_a_run_that_is_asked_in_a_step_saves_that_step_and_goes_on_to_the_same_bits(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path], step: int
) -> None:
    evaluated: list[int] = []

    def asks(training: bool, number: int) -> None:
        in_step(step, signal.SIGTERM)(training, number)
        if not training:
            evaluated.append(number)

    with pytest.raises(StoppedError) as stopped:
        fit(digits, tmp_path, asks)
    assert len(evaluated) == CHUNKS * (step // STEPS_PER_EPOCH), "no evaluation is begun first"
    assert (stopped.value.code, stopped.value.reason) == (75, "SIGTERM")
    assert_stopped(tmp_path, "SIGTERM", step + 1)
    assert_ends_as(digits, tmp_path, unbroken)


@pytest.mark.parametrize("epoch", [0, 1, EPOCHS - 1])
def test_a_run_that_is_asked_in_an_evaluation_leaves_it_and_does_it_again(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path], epoch: int
) -> None:
    with pytest.raises(StoppedError):
        fit(digits, tmp_path, in_evaluation(epoch, signal.SIGUSR1))
    assert_stopped(tmp_path, "SIGUSR1", STEPS_PER_EPOCH * (epoch + 1))
    assert len([event for event in told(tmp_path) if event["event"] == "epoch"]) == epoch
    assert_ends_as(digits, tmp_path, unbroken)


def test_a_run_stopped_again_and_again_ends_with_the_same_bits(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path]
) -> None:
    for start in range(1, LAST // 2):  # two steps each
        with pytest.raises(StoppedError):
            fit(digits, tmp_path, in_step(1, signal.SIGTERM))
        assert_stopped(tmp_path, "SIGTERM", 2 * start)
    assert_ends_as(digits, tmp_path, unbroken)
    assert status(tmp_path)["starts"] == LAST // 2


def test_the_time_limit_stops_a_run_and_the_next_start_goes_on(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path]
) -> None:
    with pytest.raises(StoppedError) as stopped:
        fit(digits, tmp_path, lambda *_: time.sleep(0.01), max_time_s=0.2)
    assert stopped.value.code == 75
    assert_stopped(tmp_path, "the time limit", status(tmp_path)["step"])
    assert 1 <= status(tmp_path)["step"] < LAST
    assert_ends_as(digits, tmp_path, unbroken)


def test_a_start_that_does_no_step_leaves_the_checkpoints_as_they_are(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path]
) -> None:
    with pytest.raises(StoppedError):
        fit(digits, tmp_path, in_step(STEPS_PER_EPOCH - 1, signal.SIGTERM))
    (folder,) = (tmp_path / "checkpoints").iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(StoppedError):
        fit(digits, tmp_path, in_evaluation(0, signal.SIGTERM))
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert_stopped(tmp_path, "SIGTERM", STEPS_PER_EPOCH)
    assert_ends_as(digits, tmp_path, unbroken)


@pytest.mark.parametrize("options", [{"folder": None}, {"checkpoint": None}])
def test_a_time_limit_is_refused_where_nothing_would_be_saved(
    digits: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"max_time_s is 60.*: give a run folder, and a check"):
        fit(digits, **({"folder": tmp_path} | options), max_time_s=60)


def test_ctrl_c_twice_ends_the_run_at_once_and_the_status_says_so(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path]
) -> None:
    with pytest.raises(InterruptedAgainError, match="what came after the last checkpoint is lost"):
        fit(digits, tmp_path, in_step(4, signal.SIGINT, signal.SIGINT))
    found = status(tmp_path)
    assert (found["state"], found["exit_code"]) == ("failed", 130)
    assert "interrupted again" in found["reason"]
    assert steps_in(tmp_path / "checkpoints") == []
    assert_ends_as(digits, tmp_path, unbroken)


def handlers() -> list[Any]:
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    return [*[signal.getsignal(number) for number in WATCHED], wakeup]


def test_signals_are_those_from_before_after_a_run_however_it_ends(
    digits: Path, tmp_path: Path
) -> None:
    before, during = handlers(), list[list[Any]]()

    def failing(training: bool, number: int) -> None:
        during.append(handlers())
        if number == 2 and not training:
            raise RuntimeError("planted")

    with pytest.raises(StoppedError):
        fit(digits, tmp_path, in_step(0, signal.SIGTERM))
    assert handlers() == before
    with pytest.raises(RuntimeError, match="planted"):
        fit(digits, tmp_path, failing)
    assert handlers() == before
    assert all(now is not then for now, then in zip(during[0], before, strict=True))
    fit(digits, tmp_path)
    assert handlers() == before


PROGRAM = """
import os, signal, sys, time
import numpy as np, torch, distrain
from data_pipeline import Dataset
from distrain.parallel.replicas import weights_digest

what, *folders = sys.argv[1:]
calls = 0

def run(model, columns):
    global calls
    calls += 1
    outputs = model(columns["x"])
    # The first or the fourth step's second micro-batch.
    if calls == {"go": -1, "hang first": 2}.get(what, 3 * 4 + 2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10_000)
    return torch.nn.functional.mse_loss(outputs, columns["y"], reduction="sum"), 8, None

draw = np.random.default_rng(0)
x = draw.standard_normal((64, 5)).astype("float32")
data = Dataset.from_arrays({"x": x, "y": x[:, :1] * 2})
for folder in folders or [None]:
    trainer = distrain.Trainer(
        model=lambda: torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1)),
        loss=torch.nn.MSELoss(), inputs="x", target="y", run=folder, grace_s=1.0, progress=False,
        checkpoint=None if what == "unsaved" else distrain.Checkpoint(),
        optimizer=lambda p: torch.optim.Adam(p, lr=0.1), micro_batch_step=run,
    )
    trainer.fit(data, epochs=4, global_batch=32, micro_batch=8)
    print(weights_digest(trainer.model))
"""


def program(tmp_path: Path, *arguments: object) -> Completed:
    (tmp_path / "program.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), *map(str, arguments)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("folder", [None, "run"])
def test_a_run_that_saves_nothing_leaves_signals_to_do_what_they_always_do(
    tmp_path: Path, folder: str | None
) -> None:
    ended = program(tmp_path, "unsaved", *([tmp_path / folder] if folder else []))
    assert ended.returncode == -signal.SIGTERM, ended.stderr


def test_a_step_that_never_ends_is_given_up_and_the_one_before_it_saved(tmp_path: Path) -> None:
    ended = program(tmp_path, "hang", tmp_path / "run")
    assert ended.returncode == 75, ended.stderr
    assert "Traceback" not in ended.stderr
    assert_stopped(tmp_path / "run", "SIGTERM", 3)
    gone_on = program(tmp_path, "go", tmp_path / "run", tmp_path / "unbroken")
    assert gone_on.returncode == 0, gone_on.stderr
    first, second = gone_on.stdout.split()
    assert first == second
    assert told(tmp_path / "run") == told(tmp_path / "unbroken")


def test_a_first_step_that_never_ends_leaves_nothing_to_save(tmp_path: Path) -> None:
    ended = program(tmp_path, "hang first", tmp_path / "run")
    assert ended.returncode == 75, ended.stderr
    assert steps_in(tmp_path / "run" / "checkpoints") == []
    found = status(tmp_path / "run")
    assert (found["state"], found["exit_code"], found["step"]) == ("stopped", 75, 0)
