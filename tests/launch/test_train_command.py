"""`distrain train` and `distrain data` as a user runs them: results, errors, exit codes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distrain.errors import ConfigError
from launch import local
from launch.horovod import rules
from tests.alone import distrain_alone
from tests.conftest import ROOT, TIMEOUT_S, Completed, clean_environment

Run = Callable[..., Completed]

JOB = ROOT / "examples" / "digits.toml"
SHORT = ("--training.epochs", "2")


def train(distrain: Run, digits: Path, folder: Path, *more: object) -> Completed:
    return distrain("train", JOB, "--data.path", digits, "--run.dir", folder, *SHORT, *more)


def step_losses(folder: Path) -> list[float]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


def test_every_number_of_workers_leaves_the_same_file_and_losses(
    distrain: Run, digits: Path, tmp_path: Path
) -> None:
    digests, losses = set(), set()
    for workers in (1, 2, 3, 8):
        done = train(distrain, digits, tmp_path / f"w{workers}", "--workers", workers)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        result = tmp_path / f"w{workers}" / "model.safetensors"
        digests.add(hashlib.sha256(result.read_bytes()).hexdigest())
        losses.add(tuple(step_losses(tmp_path / f"w{workers}")))
    assert len(digests) == len(losses) == 1
    assert len(losses.pop()) == 12


def test_a_run_says_how_it_goes_and_where_its_result_is(digits: Path, tmp_path: Path) -> None:
    done = train(distrain_alone, digits, tmp_path / "run", "--workers", 1)
    lines = done.stdout.splitlines()
    assert "global batch 256 = 8 micro-batches of 32" in lines[0]
    assert any(line.startswith("epoch 2/2: ") for line in lines)
    assert f"result: {tmp_path / 'run' / 'model.safetensors'}" in done.stdout
    again = train(distrain_alone, digits, tmp_path / "run", "--workers", 1)
    assert again.returncode == 0
    assert again.stdout.startswith("this run is finished already")


def test_a_run_goes_on_where_nobody_reads_its_lines_any_more(digits: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.main", "train", str(JOB), "--data.path", str(digits)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*command, "--run.dir", str(tmp_path / "run"), *SHORT, "--workers", "1"],
        env=clean_environment(),
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["gone.toml"], 64, "there is no job file gone.toml"),
        ([], 64, "the following arguments are required: JOB"),
        (["script.py"], 64, "script.py is a script: `distrain launch script.py` runs it"),
        ([JOB, "--worker", "2"], 64, "unknown option --worker: did you mean --workers?"),
        ([JOB, "--fres"], 64, "unknown option --fres: did you mean --fresh?"),
        ([JOB, "--optimizer.lrr", "0.1"], 64, "--optimizer.lr"),
        ([JOB, "--optimizer.lr", "fast"], 64, "fast"),
        ([JOB, "--workers", "0"], 64, "--workers is 0"),
        ([JOB, "--workers", "two"], 64, "--workers is 'two'; give a number"),
        ([JOB, "--workers", "4:1"], 64, "--workers is 4:1; MIN:MAX has the smaller number first"),
        ([JOB, "--workers", "9:12"], 78, "9 workers, but a global batch of 256 has only 8"),
        ([JOB, "--nodes", "1:2"], 64, "--nodes 1:2 needs --rendezvous HOST:PORT"),
        ([JOB, "--rendezvous", "a:1"], 64, "give --nodes MIN:MAX as well"),
        (
            [JOB, "--nodes", "2:1", "--rendezvous", "a:1"],
            64,
            "--nodes is 2:1; MIN:MAX has the smaller number first",
        ),
        ([JOB, "--nodes", "2", "--rendezvous", "a"], 64, "--rendezvous is 'a'; give HOST:PORT"),
        (
            [JOB, "--nodes", "2", "--rendezvous", "; rm:1"],
            64,
            "--rendezvous is '; rm:1'; give HOST",
        ),
        (
            [JOB, "--nodes", "2", "--rendezvous", "a" * 64 + ":1"],
            64,
            "'; give HOST:PORT, a name or",
        ),
        ([JOB, "--data.path", "gone"], 65, "no data set at gone: the folder does not exist"),
        ([JOB, "--data.path", "empty"], 65, "no data set at empty: it holds no manifest.json"),
        ([JOB, "--data.target", "lable"], 65, "has no column 'lable'; it has ['image', 'label']"),
        ([JOB, "--data.train", "trian"], 65, "has no part 'trian'"),
        (
            [JOB, "--workers", "12"],
            78,
            "12 workers, but a global batch of 256 has only 8 micro-batches of 32: lower "
            "micro_batch from 32 to 16, or start at most 8 workers",
        ),
        (
            [JOB, "--training.micro-batch", "33"],
            78,
            "a micro-batch of 33 does not divide the global batch of 256: take 32 or 64",
        ),
        ([JOB, "--training.epochs", "0"], 78, "training.epochs is 0; it must be 1 or more"),
        ([JOB, "--model.build", "cn"], 78, "did you mean cnn?"),
        ([JOB, "--model.build", "nowhere.nets:net"], 78, "nowhere can't be imported"),
        (["unknown.toml"], 78, "unknown field optimizer.lr_rate: did you mean lr?"),
        (["section.toml"], 78, "unknown field optimiser: did you mean optimizer?"),
        (["type.toml"], 78, "Expected `float`, got `str`, at `optimizer.lr`"),
        (["syntax.toml"], 78, "is not valid TOML"),
        (["missing.toml"], 78, "missing required field `data`"),
    ],
)
def test_a_job_that_cannot_run_is_refused_with_its_exit_code(
    digits: Path, tmp_path: Path, *, arguments: list[object], code: int, message: str
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "digits").symlink_to(digits)
    (tmp_path / "empty").mkdir()
    start = JOB.read_text()
    (tmp_path / "unknown.toml").write_text(start.replace("lr = 0.1", "lr_rate = 0.1"))
    (tmp_path / "section.toml").write_text(start.replace("[optimizer]", "[optimiser]"))
    (tmp_path / "type.toml").write_text(start.replace("lr = 0.1", 'lr = "fast"'))
    (tmp_path / "syntax.toml").write_text("[data\n")
    (tmp_path / "missing.toml").write_text('[model]\nbuild = "cnn"\n')
    done = distrain_alone("train", *arguments, cwd=tmp_path)
    assert message in " ".join(done.stderr.split())
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_flipped_byte_in_a_shard_is_found_before_training(
    distrain: Run, tmp_path: Path, workers: int
) -> None:
    data = tmp_path / "digits"
    assert distrain("data", "make", "digits", data, "--rows-per-shard", 500).returncode == 0
    shard = data / "train" / "00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    command = distrain_alone if workers == 1 else distrain
    done = train(command, data, tmp_path / "run", "--workers", workers)
    assert done.returncode == 65
    assert f"shard {shard} is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
    checked = distrain("data", "verify", data)
    assert (checked.returncode, checked.stdout) == (65, "")
    assert f"shard {shard} is damaged" in checked.stderr


@pytest.mark.parametrize("workers", [1, 3])
def test_a_loss_that_turns_nan_stops_all_workers_at_one_step(
    distrain: Run, digits: Path, tmp_path: Path, workers: int
) -> None:
    done = train(
        distrain_alone if workers == 1 else distrain,
        digits,
        tmp_path / "run",
        "--workers",
        workers,
        "--optimizer.lr",
        "1e30",
        "--model.options.no-batch-norm",
    )
    assert done.returncode == 70, done.stderr
    assert "Traceback" not in done.stderr
    assert " is not finite at step " in done.stderr
    assert " (epoch 1); the samples of the micro-batches at fault are the data set's rows " in (
        done.stderr
    )
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 70)
    assert status["step"] == len(step_losses(tmp_path / "run"))


def test_a_run_folder_that_cannot_be_written_is_a_storage_error(
    distrain: Run, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for workers, command in ((1, distrain_alone), (2, distrain)):
        done = train(command, digits, tmp_path / "file" / "run", "--workers", workers)
        assert done.returncode == 74
        assert f"the run folder {tmp_path / 'file' / 'run'} cannot be written" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_another_kind_is_left_alone(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    done = train(distrain_alone, digits, tmp_path / "run", "--workers", 1)
    assert done.returncode == 78
    assert "holds thesis.tex and no job.toml" in done.stderr
    assert (tmp_path / "run" / "thesis.tex").read_text() == "mine"


def test_another_jobs_folder_is_refused_until_told_to_start_afresh(
    distrain: Run, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert train(distrain_alone, digits, folder, "--workers", 1).returncode == 0
    result = (folder / "model.safetensors").read_bytes()
    done = train(distrain, digits, folder, "--workers", 2, "--run.seed", 1)
    assert done.returncode == 78
    assert "belongs to another job" in done.stderr
    assert "seed: 0 there, 1 now" in done.stderr
    assert (folder / "model.safetensors").read_bytes() == result
    done = train(distrain, digits, folder, "--workers", 2, "--run.seed", 1, "--fresh")
    assert done.returncode == 0, done.stderr
    assert (folder.with_name("run.old-1") / "model.safetensors").read_bytes() == result
    assert (folder / "model.safetensors").read_bytes() != result


def test_a_folder_in_use_is_refused_and_an_interrupted_run_has_saved(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "launch.main", "train", str(JOB), "--data.path", str(digits)]
    long = [*command, "--run.dir", str(folder), "--training.epochs", "10000", "--workers", "1"]
    cosine = ["--schedule.total-steps", "12", "--schedule.warmup-steps", "2"]
    first = subprocess.Popen(
        [*long, *cosine],
        env=clean_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "events.jsonl").exists() or not step_losses(folder):
        assert first.poll() is None, first.communicate()
        time.sleep(0.1)
    second = train(distrain_alone, digits, folder, *cosine)
    assert second.returncode == 78
    assert f"in use by a live run (pid {first.pid} on " in second.stderr
    assert json.loads((folder / "status.json").read_text())["state"] == "running"
    os.kill(first.pid, signal.SIGINT)
    _, said = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 75
    assert said.strip() == (
        "distrain: stopped by SIGINT, with everything saved: run the same command to go on"
    )
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", "stopped by SIGINT")
    third = train(distrain_alone, digits, folder, *cosine, "--fresh")
    assert third.returncode == 0, third.stderr
    assert len(step_losses(folder)) == 12


def test_data_commands_write_show_and_check(distrain: Run, tmp_path: Path) -> None:
    made = distrain("data", "make", "wine", "a folder/wine", cwd=tmp_path)
    assert (
        made.stdout == "wrote wine to a folder/wine: 142 rows for train, 36 rows for validation\n"
    )
    shown = distrain("data", "inspect", "a folder/wine", cwd=tmp_path)
    assert shown.returncode == 0
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert "class_0: 47, class_1: 57" in " ".join(shown.stdout.replace("│", " ").split())
    checked = distrain("data", "verify", "a folder/wine", cwd=tmp_path)
    assert checked.stdout == "a folder/wine: all 2 shards are as the manifest says (178 rows)\n"
    again = distrain("data", "make", "wine", "a folder/wine", cwd=tmp_path)
    assert again.returncode == 65
    assert "a folder/wine exists already" in again.stderr
    unknown = distrain("data", "make", "mnist", "mnist", cwd=tmp_path)
    assert unknown.returncode == 65
    assert "there are iris, wine, breast_cancer, diabetes, digits" in unknown.stderr


def test_wrong_commands_exit_with_64(distrain: Run) -> None:
    for arguments in (
        ["trian"],
        ["data"],
        ["launch", "--workers", "2", "gone.py"],
        ["launch", JOB],
        [],
    ):
        done = distrain(*arguments)
        assert done.returncode == 64, arguments
        assert "Traceback" not in done.stderr


def test_help_needs_no_job_and_lists_a_jobs_fields(distrain: Run) -> None:
    plain = distrain("train", "--help")
    assert plain.returncode == 0
    assert "--section.field VALUE" in plain.stdout
    full = distrain("train", JOB, "--help")
    assert full.returncode == 0
    for field in ("--optimizer.lr", "--training.global-batch", "--data.augment.shift.pixels"):
        assert field in full.stdout


def test_without_horovod_a_job_is_refused_before_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="Horovod is not installed: install it by `make horovod`"):
        local.run_workers(["job", "none.toml"], 2, backend="horovod")
