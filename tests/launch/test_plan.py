"""`distrain plan` says what a job is made of, and what it takes on this machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.commands.plan_command import plan_lines
from tests.conftest import ROOT, Completed

Run = Callable[..., Completed]

JOB = ROOT / "examples" / "digits.toml"
# Two convolutions without bias, each with a batch norm; two linear layers.
CNN_PARAMETERS = 32 * 9 + 2 * 32 + 64 * 32 * 9 + 2 * 64 + 64 * 2 * 2 * 128 + 128 + 128 * 10 + 10


def plan(distrain: Run, digits: Path, *arguments: object, cwd: Path) -> Completed:
    return distrain("plan", JOB, "--data.path", digits, *arguments, cwd=cwd)


def test_counts_are_those_of_the_arithmetic_and_nothing_is_tried_without_time(
    distrain: Run, digits: Path, tmp_path: Path
) -> None:
    done = plan(distrain, digits, "--seconds", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"data      {digits}: 1,437 rows to train on, 360 for validation",
        "steps     30 epochs of 6: 180",
        "batch     256 samples = 8 micro-batches of 32",
        "          an epoch's last: 157 samples in 5",
        "workers   1, 2, 3, 4, 8 (others are no faster)",
        "          all have the same to do with 1, 2, 4, 8",
    ]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", [(1, 4, 0), (2, 3, 1), (3, 2, 4)])
def test_what_is_measured_is_what_the_model_has_and_leaves_no_files(
    distrain: Run, digits: Path, tmp_path: Path, case: tuple[int, int, int]
) -> None:
    workers, kept, sent = case
    options = ("--workers", workers, "--seconds", 0.2, "--json")
    done = plan(distrain, digits, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["steps"], found["useful_workers"]) == (180, [1, 2, 3, 4, 8])
    assert found["world_size"] == workers
    assert (found["num_parameters"], found["num_tensors"]) == (CNN_PARAMETERS, 10)
    # Momentum is one more number for each parameter.
    assert found["optimizer_bytes"] == 4 * CNN_PARAMETERS
    # Two batch norms: running mean and variance of 32 and 64 channels, and a count each.
    assert found["model_bytes"] == 4 * CNN_PARAMETERS + 4 * 2 * (32 + 64) + 2 * 8
    assert found["payload_bytes"] > 4 * CNN_PARAMETERS
    # 8 leaves, folded as in a binary counter.
    assert found["partial_sums"] == kept
    # Of 3 workers the busiest has two nodes of the tree for each of the others, and one would do.
    assert found["sent_bytes"] == sent * found["payload_bytes"]
    assert found["unaligned_bytes"] == (sent // 2 if workers == 3 else 0) * found["payload_bytes"]
    # W = 2, 4 and 8 swap whole sums in rounds of pairs; a payload has flags of every worker.
    others = {one["workers"]: one for one in found["exchanges"]}
    assert sorted(others) == [2, 3, 4, 8]
    for size, sums, unaligned in ((2, 1, 0), (3, 4, 2), (4, 2, 0), (8, 3, 0)):
        one = others[size]
        assert one["sent_bytes"] == pytest.approx(sums * found["payload_bytes"], rel=0.01)
        assert one["unaligned_bytes"] == pytest.approx(unaligned * found["payload_bytes"], rel=0.01)
    assert found["peak_bytes"] > 50e6
    assert 0 < found["least_step_s"] <= found["step_s"] <= found["most_step_s"]
    assert found["run_s"] > 180 * found["step_s"]
    assert not list(tmp_path.iterdir())


def test_the_measured_plan_fits_a_terminal(distrain: Run, digits: Path, tmp_path: Path) -> None:
    done = plan(distrain, digits, "--workers", 2, "--seconds", 0.1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert all(len(line) <= 80 for line in lines)
    at = next(number for number, line in enumerate(lines) if line.startswith("exchange  "))
    assert lines[at : at + 3] == [
        "exchange  a step, from the busiest worker: 2 workers 0.21 MB, 3 workers 0.86 MB",
        "          (0.43 MB extra), 4 workers 0.43 MB, 8 workers 0.64 MB",
        "          extra: what shares of a batch that cut its tree unevenly add",
    ]
    assert any(line.startswith("run       about ") for line in lines)


def test_many_workers_are_named_by_the_first_and_the_last(
    distrain: Run, digits: Path, tmp_path: Path
) -> None:
    one = plan(distrain, digits, "--seconds", 0, "--training.micro-batch", 1, cwd=tmp_path)
    assert "workers   1, 2, 3, 4, 5, 6, 7, 8, ... 256 (others are no faster)" in one.stdout
    whole = plan(distrain, digits, "--seconds", 0, "--training.micro-batch", 256, cwd=tmp_path)
    assert "workers   1: a batch has a single micro-batch" in whole.stdout


@pytest.mark.parametrize(
    "case",
    [
        (("--workers", 9), 78, "only 8 micro-batches of 32"),
        (("--seconds", -1), 64, "--seconds is -1.0; give 0 or more"),
        (("--optimizer.lr", 1e30), 70, "not finite"),
        (("--data.train", "nothing"), 65, "has no part 'nothing'"),
    ],
)
def test_a_job_that_would_not_run_is_found_out(
    distrain: Run, digits: Path, tmp_path: Path, case: tuple[tuple[Any, ...], int, str]
) -> None:
    arguments, code, told = case
    done = plan(distrain, digits, *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert told in done.stderr


def test_the_lines_of_large_jobs_name_gigabytes_and_hours() -> None:
    class Monitor:
        monitor = None

    class Data:
        path = "shards/large"

    class Large:
        data, early_stopping = Data, Monitor

    found = {
        "rows": 10**9,
        "validation_rows": 0,
        "epochs": 3,
        "steps_per_epoch": 10**6,
        "steps": 3 * 10**6,
        "global_batch": 1000,
        "micro_batch": 10,
        "micro_batches": 100,
        "last_batch_samples": 1000,
        "last_batch_micro_batches": 100,
        "useful_workers": [1, 2],
        "world_size": 1,
        "device": "cpu",
        "num_parameters": 10**9,
        "num_tensors": 300,
        "model_bytes": 4 * 10**9,
        "payload_bytes": 4 * 10**9,
        "partial_sums": 7,
        "optimizer_bytes": 8 * 10**9,
        "sent_bytes": 0,
        "unaligned_bytes": 0,
        "exchanges": [{"workers": 2, "sent_bytes": 4 * 10**9, "unaligned_bytes": 0}],
        "peak_bytes": 45 * 10**9,
        "steps_measured": 5,
        "step_s": 0.1,
        "least_step_s": 0.1,
        "most_step_s": 0.2,
        "evaluation_s": None,
        "prepare_s": 1.0,
        "run_s": 300_001.0,
    }
    text = "\n".join(plan_lines(Large, found))  # type: ignore[arg-type]
    assert "weights 4.00 GB, optimizer 8.00 GB" in text
    assert "gradients 7 x 4.00 GB (partial sums); at most 45.00 GB in all" in text
    assert "exchange  a step, from the busiest worker: 2 workers 4.00 GB\nstep" in text
    assert text.endswith("run       about 3 d 11 h")
