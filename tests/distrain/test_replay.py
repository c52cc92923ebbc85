"""A step of a run again: the recorded bits, from wherever it is walked; and nothing is touched."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_pipeline import Dataset
from distrain.config import Job
from distrain.errors import ConfigError, UsageError
from distrain.job_file import job_from_mapping
from distrain.learn.models import mlp
from distrain.practice.activation_memory import activation_bytes
from distrain.practice.replay import ReplayedError, Request, replaying
from distrain.practice.replayed import Replayed
from distrain.run_job import run_job
from tests.folders import hashes
from tests.run_folders import named

EPOCHS, STEPS_PER_EPOCH, ROWS, MICRO_BATCH = 4, 3, 90, 8
STEPS = EPOCHS * STEPS_PER_EPOCH


def job(iris: Path, folder: Path, **sections: Any) -> Job:
    """90 rows in batches of 32: the last of an epoch is short."""
    tables: dict[str, dict[str, Any]] = {
        "data": {"path": str(iris), "inputs": "features", "target": "label", "standardize": False},
        "model": {"build": "mlp", "options": {"hidden": [8]}},
        "optimizer": {"name": "adamw", "lr": 0.02},
        "training": {"epochs": EPOCHS, "global_batch": 32, "micro_batch": MICRO_BATCH},
        "early_stopping": {"monitor": "val_loss", "patience": 1},
        "checkpoint": {"every_steps": 2, "keep_last": 3},
        "run": {"dir": str(folder)},
    }
    for name, fields in sections.items():
        tables[name] = {**tables.get(name, {}), **fields}
    return job_from_mapping(tables)


@pytest.fixture(scope="module")
def run(iris: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; it has checkpoints of steps 8, 10 and 12."""
    folder = tmp_path_factory.mktemp("runs") / "iris"
    run_job(job(iris, folder))
    assert len(named(folder, "step")) == STEPS
    return folder


@pytest.fixture(name="copied")
def _copied(run: Path, tmp_path: Path) -> Path:
    """One that may be changed."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def replayed(given: Job, **asked: Any) -> tuple[Replayed, list[str]]:
    told: list[str] = []
    request = Request(folder=Path(str(given.run.dir)), tell=told.append, **asked)
    with replaying(request), pytest.raises(ReplayedError) as done:
        run_job(given)
    return done.value.replayed, told


@pytest.mark.parametrize("step", [1, 3, 4, 9, 12])
def test_a_step_gives_the_recorded_bits_and_the_folder_stays_as_it_is(
    iris: Path, run: Path, step: int
) -> None:
    before = hashes(run), [path.stat().st_mtime_ns for path in sorted(run.rglob("*"))]
    found, told = replayed(job(iris, run), step=step)
    assert before == (hashes(run), [p.stat().st_mtime_ns for p in sorted(run.rglob("*"))])
    recorded = named(run, "step")[step - 1]
    assert found.numbers == {name: recorded[name] for name in ("loss", "grad_norm", "lr")}
    assert (found.is_equal, found.first_difference, found.failure) == (True, None, None)
    assert found.start == {9: 8, 12: 10}.get(step, 0)
    assert found.num_compared == step - found.start
    assert told[0] == f"{run}: step {step} of epoch {(step + 2) // 3}"


def test_who_walks_far_is_told_how_checkpoints_are_kept(iris: Path, run: Path) -> None:
    _, told = replayed(job(iris, run), step=5)
    assert told[1:] == [
        "walk      5 steps to step 5, from the run's begin, by its seed",
        "          nearer checkpoints are not kept any more: checkpoint.keep_last (now 3)",
        "          keeps more of the newest, checkpoint.keep_every every n-th for good",
    ]
    _, told = replayed(job(iris, run), step=10)
    assert told[1:] == ["walk      2 steps to step 10, from after the checkpoint of step 8"]


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(iris: Path, copied: Path) -> None:
    path = copied / "checkpoints" / "step-000000010" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    before = hashes(copied)
    found, told = replayed(job(iris, copied), step=11)
    assert (found.start, found.is_equal) == (8, True)
    assert len(found.passed_over) == 1
    assert "step-000000010/model.safetensors is damaged" in told[1]
    assert hashes(copied) == before


def test_samples_losses_and_norms_are_those_of_torch_by_hand(iris: Path, run: Path) -> None:
    found, _ = replayed(job(iris, run), step=9, micro_batch=2)
    [one] = found.micro_batches
    train = Dataset(iris, "train")
    assert train.num_rows == ROWS
    rows = np.array(one.rows)
    features, labels = np.zeros((len(rows), 4), np.float32), np.zeros(len(rows), np.int64)
    train.gather("features", rows, features)
    train.gather("label", rows, labels)
    assert one.labels == [train.columns["label"].classes[label] for label in labels]
    model = mlp((4,), 3, hidden=[8])
    model.load_state_dict(load_file(run / "checkpoints" / "step-000000008" / "model.safetensors"))
    outputs = model(torch.from_numpy(features))
    loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels))
    loss.backward()  # type: ignore[no-untyped-call]
    outputs, loss = outputs.detach(), loss.detach()
    assert one.loss == pytest.approx(loss.item(), rel=1e-5)
    norms = {
        name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None
    }
    assert found.gradients == pytest.approx(norms, rel=1e-4)
    last = found.layers[-1]
    assert (last.name, last.shape) == ("", (len(rows), 3))
    assert last.rms == pytest.approx(float(outputs.square().mean().sqrt()), rel=1e-5)
    assert last.largest == pytest.approx(float(outputs.abs().max()), rel=1e-5)
    assert found.parameters is not None
    weights = {name: float(p.detach().norm()) for name, p in model.named_parameters()}
    assert found.parameters["weight_norm"] == pytest.approx(weights, rel=1e-5)


def test_micro_batches_are_those_of_the_epochs_order_and_make_the_steps_loss(
    iris: Path, run: Path
) -> None:
    epoch = [replayed(job(iris, run), step=step)[0] for step in (10, 11, 12)]
    rows = [row for found in epoch for one in found.micro_batches for row in one.rows]
    assert sorted(rows) == list(range(ROWS))
    for found in epoch:
        assert found.numbers is not None
        losses = [len(one.rows) * (one.loss or 0.0) for one in found.micro_batches]
        size = sum(len(one.rows) for one in found.micro_batches)
        assert found.numbers["loss"] == pytest.approx(sum(losses) / size, rel=1e-6)
    assert [len(one.rows) for one in epoch[-1].micro_batches] == [8, 8, 8, 2]


def test_what_is_not_as_recorded_is_said_with_what_has_changed_since(
    iris: Path, copied: Path
) -> None:
    path = copied / "events.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        event = json.loads(line)
        if event["event"] == "step" and event["step"] == 10:
            event["loss"] = np.nextafter(event["loss"], 9.0)  # one last bit
            lines[number] = json.dumps(event) + "\n"
    path.write_text("".join(lines))
    environment = json.loads((copied / "environment.json").read_text())
    (copied / "environment.json").write_text(json.dumps({**environment, "torch": "1.0"}))
    found, _ = replayed(job(iris, copied), step=10)
    assert (found.is_equal, found.first_difference) == (False, 10)
    assert found.environment == {"torch": ("1.0", torch.__version__)}
    assert replayed(job(iris, copied), step=9)[0].is_equal is True


def test_a_step_without_a_record_is_done_and_nothing_is_claimed(iris: Path, copied: Path) -> None:
    path = copied / "events.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"step": 12' not in line]
    path.write_text("\n".join(kept) + '\n{"event": "step", "step": 12, "lo')
    found, _ = replayed(job(iris, copied), step=12)
    assert (found.recorded, found.is_equal, found.num_compared) == (None, None, 1)
    assert found.numbers is not None


def test_of_a_step_that_was_done_twice_the_newest_record_counts(iris: Path, copied: Path) -> None:
    path = copied / "events.jsonl"
    old = {"event": "step", "step": 9, "loss": 7.0, "grad_norm": 7.0, "lr": 7.0}
    path.write_text(json.dumps(old) + "\n" + path.read_text())
    assert replayed(job(iris, copied), step=9)[0].is_equal is True


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"step": 13}, "--step is 13; the run has the steps 1 to 12"),
        ({"step": 0}, "--step is 0; the run has the steps 1 to 12"),
        ({"step": 3, "micro_batch": 4}, "step 3 has the micro-batches 0 to 3"),
        ({}, "is done and has not failed in a step: give --step, from 1 to 12"),
    ],
)
def test_what_is_not_there_is_refused(
    iris: Path, run: Path, asked: dict[str, Any], message: str
) -> None:
    with replaying(Request(folder=run, **asked)), pytest.raises(UsageError, match=message):
        run_job(job(iris, run))


def test_another_run_is_refused_by_what_differs(iris: Path, run: Path) -> None:
    with replaying(Request(folder=run, step=3)), pytest.raises(ConfigError, match="seed: 0 there"):
        run_job(job(iris, run, run={"dir": str(run), "seed": 1}))


def test_no_other_run_is_trained_on_the_way(iris: Path, run: Path, tmp_path: Path) -> None:
    other = job(iris, tmp_path / "other")
    message = "the script would train .*other first, which is not finished"
    with replaying(Request(folder=run, step=3)), pytest.raises(UsageError, match=message):
        run_job(other)
    assert not (tmp_path / "other").exists()


def test_a_run_that_stops_early_has_no_step_behind_that(iris: Path, tmp_path: Path) -> None:
    given = job(iris, tmp_path / "run", early_stopping={"min_delta": 100.0, "patience": 0})
    history = run_job(given)
    done = STEPS_PER_EPOCH * len(history.epochs)
    assert done < STEPS
    found, _ = replayed(given, step=done)
    assert found.is_equal is True
    message = f"stops early after step {done}: there is no step {done + 1}"
    request = Request(folder=tmp_path / "run", step=done + 1)
    with replaying(request), pytest.raises(UsageError, match=message):
        run_job(given)


def test_a_job_that_is_not_asked_for_trains_as_ever(iris: Path, run: Path) -> None:
    assert run_job(job(iris, run)).result == run / "model.safetensors"


def test_the_memory_of_a_forward_pass_is_what_its_layers_keep() -> None:
    rows, model = (
        32,
        torch.nn.Sequential(
            torch.nn.Linear(10, 20), torch.nn.ReLU(), torch.nn.Linear(20, 5), torch.nn.Sigmoid()
        ),
    )

    def step(net: torch.nn.Module, columns: Any) -> Any:
        outputs = net(columns["x"])
        return outputs.sum(), float(rows), outputs

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # The rectifier keeps its output, which the second layer keeps too; and the sigmoid its own.
    kept = activation_bytes(model, step, {"x": torch.randn(rows, 10)})
    assert kept == 4 * rows * (20 + 5)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


Change = Callable[[Job], Job]
WAYS: dict[str, Change] = {
    "prefetching": lambda given: replace(given, data=replace(given.data, prefetch=5, threads=2)),
    "sharding": lambda given: replace(
        given, parallel=replace(given.parallel, shard_optimizer=True)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_part_of_a_result_is_free(iris: Path, run: Path, way: str) -> None:
    assert replayed(WAYS[way](job(iris, run)), step=11)[0].is_equal is True
