"""A run that was cut off goes on at the exact sample, at any number of workers: the same bits."""

import hashlib
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import distrain
from data_pipeline import Dataset, StorageError, augment
from distrain.errors import ConfigError
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.replicas import weights_digest
from tests.alone import distrain_alone
from tests.conftest import ROOT, Completed, clean_environment
from tests.run_folders import events, told

Run = Callable[..., Completed]

JOB = ROOT / "examples" / "digits.toml"
STEPS_PER_EPOCH, EPOCHS = 6, 4


def build_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(144, 10),
    )


def micro_batches_before(step: int) -> int:
    """An epoch has five steps of 8 micro-batches and one of 5, for its last 157 rows."""
    epochs, steps = divmod(step, STEPS_PER_EPOCH)
    return 45 * epochs + 8 * steps


class PowerCutError(Exception):
    """Ends a run in mid-step."""


def fit(
    digits: Path,
    folder: Path,
    *,
    cut_at: int | None = None,
    epochs: int = EPOCHS,
    **options: Any,
) -> distrain.Trainer:
    """Trains with a checkpoint every second step; cut off in step `cut_at`, counted from 0."""
    # A name that the function binds anew is no part of a run's identity, as `cut_at` would be.
    left = math.inf if cut_at is None else micro_batches_before(cut_at)

    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        nonlocal left
        if model.training:
            left -= 1
            if left < 0:
                raise PowerCutError
        outputs = model(columns["image"])
        loss = nn.functional.cross_entropy(outputs, columns["label"], reduction="sum")
        return loss, len(outputs), outputs

    settings: dict[str, Any] = {
        "optimizer": lambda p: torch.optim.AdamW(p, lr=0.01),
        "checkpoint": distrain.Checkpoint(every_steps=2, every_seconds=None),
        "early_stopping": distrain.EarlyStopping("val_loss", patience=9, restore_best=True),
        **options,
    }
    trainer = distrain.Trainer(
        model=build_net,
        loss=nn.CrossEntropyLoss(),
        inputs="image",
        target="label",
        run=folder,
        metrics=["accuracy"],
        micro_batch_step=run,
        progress=False,
        **settings,
    )
    trainer.fit(
        Dataset(digits),
        Dataset(digits, "validation"),
        epochs=epochs,
        global_batch=256,
        augment=[augment.Shift(1)],
    )
    return trainer


@pytest.fixture(scope="module")
def unbroken(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The digest and the folder of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return weights_digest(fit(digits, folder).model), folder


# Before the first checkpoint; in mid-epoch; at an epoch's begin and after it; in the last step.
@pytest.mark.parametrize("cut_at", [1, 3, 8, 12, 13, 23])
def test_a_run_cut_off_anywhere_ends_with_the_bits_of_the_unbroken_one(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path], cut_at: int
) -> None:
    with pytest.raises(PowerCutError):
        fit(digits, tmp_path / "run", cut_at=cut_at)
    assert weights_digest(fit(digits, tmp_path / "run").model) == unbroken[0]
    assert told(tmp_path / "run") == told(unbroken[1])
    resumed = [event["step"] for event in events(tmp_path / "run") if event["event"] == "resume"]
    assert resumed == ([] if cut_at == 1 else [cut_at // 2 * 2])


@pytest.mark.parametrize(
    ("average", "cut_at"),
    [
        (distrain.ExponentialAverage(0.9), 9),
        (distrain.ExponentialAverage(0.9, every_steps=3, start_step=4), 9),
        (distrain.StochasticAverage(start_epoch=2), 21),
        (distrain.StochasticAverage(start_epoch=3), 9),
    ],
)
@pytest.mark.parametrize("restore_best", [True, False])
def test_an_average_goes_on_as_if_nothing_had_happened(
    digits: Path, tmp_path: Path, average: Any, cut_at: int, restore_best: bool
) -> None:
    options: dict[str, Any] = {
        "average": average,
        "optimizer": lambda groups: torch.optim.AdamW(groups, lr=0.01),
        "groups": [distrain.ParameterGroup("5.*", lr=0.003)],
        "decay_norms_and_biases": False,
        "early_stopping": distrain.EarlyStopping("val_loss", 9, restore_best=restore_best),
    }
    whole = fit(digits, tmp_path / "whole", **options)
    with pytest.raises(PowerCutError):
        fit(digits, tmp_path / "run", cut_at=cut_at, **options)
    again = fit(digits, tmp_path / "run", **options)
    assert weights_digest(again.model) == weights_digest(whole.model)
    assert told(tmp_path / "run") == told(tmp_path / "whole")
    loaded = fit(digits, tmp_path / "run", **options)
    assert weights_digest(loaded.model) == weights_digest(whole.model)


def test_a_run_that_was_stopped_early_does_not_go_on_after_its_last_checkpoint(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "early_stopping": distrain.EarlyStopping("loss", mode="max", restore_best=True)
    }
    whole = fit(digits, tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        patched.setattr(
            "distrain.coordinator.run_folder.RunFolder.write_result",
            lambda *_: (_ for _ in ()).throw(PowerCutError()),
        )
        with pytest.raises(PowerCutError):
            fit(digits, tmp_path / "run", **options)
    again = fit(digits, tmp_path / "run", **options)
    assert weights_digest(again.model) == weights_digest(whole.model)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["reason"], status["step"]) == ("stopped early", 2 * STEPS_PER_EPOCH)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path]
) -> None:
    with pytest.raises(PowerCutError):
        fit(digits, tmp_path / "run", cut_at=9)
    file = tmp_path / "run" / "checkpoints" / "step-000000008" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_digest(fit(digits, tmp_path / "run").model) == unbroken[0]
    (damaged,) = [event for event in events(tmp_path / "run") if event["event"] == "damaged"]
    assert f"{file} is damaged" in damaged["text"]
    assert (tmp_path / "run" / "checkpoints" / "damaged-step-000000008-1").is_dir()


def test_a_run_that_stands_beyond_what_is_asked_for_is_not_cut_back(
    digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(PowerCutError):
        fit(digits, tmp_path / "run", cut_at=20)
    with pytest.raises(ConfigError, match="stands after step 20, and 18 steps are asked for"):
        fit(digits, tmp_path / "run", epochs=3)


def test_with_all_checkpoints_damaged_the_run_is_not_done_over_silently(
    digits: Path, tmp_path: Path
) -> None:
    with pytest.raises(PowerCutError):
        fit(digits, tmp_path / "run", cut_at=3)
    (tmp_path / "run" / "checkpoints" / "step-000000002" / "state.json").write_text("{}")
    with pytest.raises(StorageError, match=r"no checkpoint in .* is good"):
        fit(digits, tmp_path / "run")


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_more(
    digits: Path, tmp_path: Path, unbroken: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Path.write_bytes, 0

    def full_at_first(path: Path, content: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls <= 4:
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_at_first)
    trainer = fit(digits, tmp_path / "run")
    assert weights_digest(trainer.model) == unbroken[0]
    names = [event["event"] for event in events(tmp_path / "run")]
    assert names.count("checkpoint_failed") == 4
    assert names.count("checkpoint") == 8


def test_checkpoints_keep_no_more_than_they_were_told(
    unbroken: tuple[str, Path],
) -> None:
    names = sorted(path.name for path in (unbroken[1] / "checkpoints").iterdir())
    assert names == ["step-000000022", "step-000000024"]


AVERAGED = ("--average.name", "ema", "--average.decay", "0.9", "--average.start-step", "9")


def command(digits: Path, folder: Path, workers: int, options: Sequence[str]) -> list[str]:
    where = ["--data.path", str(digits), "--run.dir", str(folder), "--workers", str(workers)]
    often = ["--checkpoint.every-steps", "3", "--training.epochs", "12"]
    return ["train", str(JOB), *where, *often, *options]


def start(
    digits: Path, folder: Path, workers: int, options: Sequence[str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.main", *command(digits, folder, workers, options)],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_with_its_workers(run: subprocess.Popen[str]) -> None:
    """Kills the command, unless it has ended; gives back once all that it has started is gone."""
    below = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
    run.kill()
    run.wait()
    assert not psutil.wait_procs(below, timeout=120.0)[1], "its workers die with it"


@pytest.mark.parametrize("options", [(), AVERAGED], ids=["plain", "averaged"])
def test_a_run_killed_with_all_its_workers_goes_on_at_other_numbers_of_them(
    digits: Path, tmp_path: Path, options: Sequence[str]
) -> None:
    seed = int(time.time())
    print(f"seed {seed}")
    moments = random.Random(seed)
    whole = distrain_alone(*command(digits, tmp_path / "whole", 1, options))
    assert whole.returncode == 0, whole.stderr
    for workers in (4, 1, 3):
        run = start(digits, tmp_path / "run", workers, options)
        log = tmp_path / "run" / "events.jsonl"
        before = log.stat().st_size if log.exists() else 0
        while run.poll() is None and (not log.exists() or log.stat().st_size == before):
            time.sleep(0.02)
        if workers != 3:
            time.sleep(moments.uniform(0.0, 0.8))
            kill_with_its_workers(run)
        else:
            assert run.wait(timeout=240) == 0, run.communicate()
        if run.stderr is not None:
            run.stderr.close()
    digests = {
        hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("whole", "run")
    }
    assert len(digests) == 1
    assert told(tmp_path / "run") == told(tmp_path / "whole")
