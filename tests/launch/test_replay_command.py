"""`distrain replay`: runs of several workers on one process, faults by layer, pdb, scripts."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distrain.errors import ProgramError
from distrain.job_file import read_job
from distrain.run_job import run_job
from launch.main import main
from tests.conftest import PROGRAMS, TIMEOUT_S, Completed, clean_environment
from tests.folders import hashes
from tests.run_folders import named, status

Run = Callable[..., Completed]

JOB = """\
[data]
path = "{data}"
inputs = "image"
target = "label"
validation = "none"

[model]
build = "spoiled_model:build"

[model.options]
fault = "{fault}"
bound = 5.0

[optimizer]
lr = 0.1
momentum = 0.9

[training]
epochs = 3
global_batch = 256
micro_batch = 32
batch_norm = "{batch_norm}"

[checkpoint]
every_steps = 4
"""
SPOILED_LAYER = "6"


def job_file(digits: Path, folder: Path, fault: str, batch_norm: str) -> Path:
    path = folder / "job.toml"
    path.write_text(JOB.format(data=digits, fault=fault, batch_norm=batch_norm))
    return path


def trained(
    distrain: Run, digits: Path, folder: Path, fault: str, batch_norm: str, workers: int
) -> Path:
    """By real workers."""
    job = job_file(digits, folder, fault, batch_norm)
    options = ("--workers", workers, "--run.dir", folder / "run")
    done = distrain("train", job, *options, cwd=PROGRAMS)
    assert done.returncode == (0 if fault == "nothing" else 70), done.stderr
    return folder / "run"


def trained_here(digits: Path, folder: Path, fault: str, batch_norm: str) -> Path:
    """In this process, up to the fault."""
    job = read_job(job_file(digits, folder, fault, batch_norm))
    sys.path.insert(0, str(PROGRAMS))  # until the fixture `command` ends
    with pytest.raises((ProgramError, ValueError)):
        run_job(replace(job, run=replace(job.run, dir=str(folder / "run"))))
    return folder / "run"


Command = Callable[..., Completed]


@pytest.fixture(name="command")
def _command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `distrain replay` in this process, where torch is imported."""
    monkeypatch.chdir(PROGRAMS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: object) -> Completed:
        given = ["replay", *map(str, arguments)]
        capfd.readouterr()  # what was said before
        with pytest.raises(SystemExit) as ended:
            main(given)
        told = capfd.readouterr()
        return subprocess.CompletedProcess(given, int(ended.value.code or 0), told.out, told.err)

    return run


def replayed(command: Command, run: Path, *arguments: object) -> dict[str, Any]:
    before = hashes(run)
    done = command(run, *arguments, "--json")
    assert hashes(run) == before
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def synchronised(distrain: Run, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 workers, batch norm by the whole global batch, which has ended well."""
    return trained(distrain, digits, tmp_path_factory.mktemp("sync"), "nothing", "sync", 4)


@pytest.fixture(scope="module")
def spoiled(distrain: Run, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 workers that has stopped at a NaN of a forward pass."""
    return trained(distrain, digits, tmp_path_factory.mktemp("nan"), "forward", "micro", 2)


def test_a_step_of_four_workers_with_synchronised_norms_has_its_bits_on_one(
    command: Command, synchronised: Path
) -> None:
    found = replayed(command, synchronised, "--step", 15)
    recorded = named(synchronised, "step")[14]
    assert found["numbers"] == {name: recorded[name] for name in ("loss", "grad_norm", "lr")}
    assert (found["is_equal"], found["start"], found["num_compared"]) == (True, 12, 3)
    # By hand, of 32 samples in float32: the norm's input, the rectifier's output, what goes into
    # the two linear layers behind it (16 each) and the logits' softmax (10); the dropout's mask,
    # and the norm's mean and deviation, come on top.
    each, rest = divmod(found["activation_bytes"], 8)
    least = 32 * 4 * (4 * 16 + 10)
    assert (rest, least < each < least + 32 * 4 * 16 + 1024) == (0, True)


def test_a_person_is_told_what_a_program_is(command: Command, synchronised: Path) -> None:
    done = command(synchronised, "--step", 13)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    recorded = named(synchronised, "step")[12]
    assert lines[:2] == [
        f"{synchronised}: step 13 of epoch 3",
        "walk      1 step to step 13, from after the checkpoint of step 12",
    ]
    assert lines[2].startswith("memory    0.1 MB for gradients: synchronised batch norm has all")
    assert f"loss      {recorded['loss']!r}".ljust(34) + "as recorded, bit for bit" in lines
    assert "walked    1 step held against the record: all the same, bit for bit" in lines
    assert max(len(line) for line in lines[1:]) <= 80


def test_a_nan_is_stopped_at_with_its_layer_its_micro_batch_and_its_samples(
    command: Command, spoiled: Path
) -> None:
    step = status(spoiled)["step"] + 1
    found = replayed(command, spoiled)
    assert (found["step"], found["is_equal"], found["numbers"]) == (step, True, None)
    failure = found["failure"]
    assert (failure["text"], failure["is_recorded"]) == ("the loss is not finite", True)
    first = failure["first"]
    assert (first["place"], first["layer"], first["kind"]) == ("output", SPOILED_LAYER, "Spoiled")
    # The rows of those micro-batches are on record; the samples in them are known here alone.
    blamed = named(spoiled, "end")[-1]["rows"]
    assert set(failure["rows"]) < set(blamed)
    assert len(failure["rows"]) == len(first["samples"])
    own = found["micro_batches"][failure["micro_batch"]]
    assert own["loss"] is None
    assert [own["rows"][place] for place in first["samples"]] == failure["rows"]
    before = replayed(command, spoiled, "--step", step - 1)
    assert (before["is_equal"], before["failure"]) == (True, None)
    shown = command(spoiled).stdout
    assert f"failed    in step {step}, as recorded: the loss is not finite" in shown
    assert f"first     layer {SPOILED_LAYER} (Spoiled) gives a NaN, and what goes into it" in shown


def test_a_gradient_that_is_not_finite_is_laid_to_its_layer_with_synchronised_norms(
    command: Command, digits: Path, tmp_path: Path
) -> None:
    run = trained_here(digits, tmp_path, "backward", "sync")
    failure = replayed(command, run)["failure"]
    assert (failure["text"], failure["is_recorded"]) == ("the gradient is not finite", True)
    first = failure["first"]
    assert (first["place"], first["layer"]) == ("gradient of the input", SPOILED_LAYER)
    assert set(failure["rows"]) < set(named(run, "end")[-1]["rows"])


def test_any_other_error_comes_again_with_its_traceback_and_its_micro_batch(
    command: Command, digits: Path, tmp_path: Path
) -> None:
    run = trained_here(digits, tmp_path, "raise", "micro")
    found = replayed(command, run)
    failure = found["failure"]
    assert (failure["kind"], failure["text"]) == ("ValueError", "planted in the model")
    assert failure["is_recorded"] is True
    assert failure["traceback"].endswith("ValueError: planted in the model\n")
    own = found["micro_batches"][failure["micro_batch"]]
    assert failure["rows"] == own["rows"]
    done, left = with_pdb(run, "p x.max() > self.bound\nq\n")
    assert "-> raise ValueError" in done.stdout
    assert "(Pdb) tensor(True)" in done.stdout
    assert left == 0


def with_pdb(run: Path, commands: str, *arguments: object) -> tuple[Completed, int]:
    """The command with pdb's commands on stdin, and its exit code."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "launch.main",
            "replay",
            str(run),
            *map(str, arguments),
            "--debugger",
        ],
        cwd=PROGRAMS,
        env=clean_environment(),
        input=commands,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    return done, done.returncode


def test_the_debugger_opens_before_a_micro_batch_and_changes_nothing(synchronised: Path) -> None:
    look = "p type(model).__name__, sorted(columns), len(rows), batch.step, micro_batch\n"
    done, code = with_pdb(
        synchronised, f"{look}s\np self.inputs\nc\n", "--step", 14, "--micro-batch", 5
    )
    assert code == 0, done.stderr
    assert "(Pdb) ('Sequential', ['image', 'label'], 32, 13, 5)" in done.stdout
    assert "(Pdb) 'image'" in done.stdout
    assert "2 steps held against the record: all the same, bit for bit" in done.stdout


def test_the_debugger_opens_where_numbers_are_not_finite_and_may_be_left(spoiled: Path) -> None:
    done, code = with_pdb(spoiled, "p found.place, type(layer).__name__\nq\n")
    assert code == 0, done.stderr
    assert "(Pdb) ('output', 'Spoiled')" in done.stdout
    assert done.stdout.endswith("left in the debugger: nothing is compared\n")


SCRIPT = """\
import sys
import torch
import distrain
from data_pipeline import Dataset

trainer = distrain.Trainer(
    model=lambda: torch.nn.Linear(4, 3),
    run=sys.argv[2],
    inputs="features",
    target="label",
    loss=torch.nn.CrossEntropyLoss(),
    optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
)
print("before")
trainer.fit(Dataset(sys.argv[1], "train"), epochs=2, global_batch=32, micro_batch=8)
print("after")
"""


def test_a_run_of_a_script_is_replayed_by_the_script(
    distrain: Run, command: Command, iris: Path, tmp_path: Path
) -> None:
    script, run = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    done = distrain("launch", "--workers", 2, script, iris, run)
    assert done.returncode == 0, done.stderr
    refused = command(run, "--step", 4)
    assert refused.returncode == 78
    assert f"distrain replay {run} --step S -- SCRIPT ARGS" in refused.stderr
    before = hashes(run)
    again = command(run, "--step", 4, "--json", "--", script, iris, run)
    assert (again.returncode, again.stderr) == (0, "before\n")
    assert json.loads(again.stdout)["is_equal"] is True
    assert hashes(run) == before
    other = command(run, "--step", 4, "--", script, iris, tmp_path / "other")
    assert other.returncode == 64
    assert "other first, which is not finished" in other.stderr
    script.write_text("print('nothing')")
    nothing = command(run, "--step", 4, "--", script)
    assert nothing.returncode == 64
    assert f"has come to no Trainer.fit whose run is {run}" in nothing.stderr


def test_a_difference_is_an_exit_code_and_names_what_has_changed(
    command: Command, synchronised: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in synchronised.iterdir():
        if path.name not in ("events.jsonl", "environment.json"):
            (run / path.name).symlink_to(path)
    events = (synchronised / "events.jsonl").read_text()
    loss = repr(named(synchronised, "step")[12]["loss"])
    (run / "events.jsonl").write_text(events.replace(loss, "0.5"))
    told = json.loads((synchronised / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**told, "cpu": "a cray"}))
    done = command(run, "--step", 13)
    assert done.returncode == 70
    assert "recorded: 0.5" in done.stdout
    assert done.stderr.startswith(
        "distrain: step 13 did not come out as recorded. The environment is another one: cpu a cray"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{empty}",), "there is no run in {empty}: it has no job.toml"),
        (("{run}",), "has not failed in a step: give --step, from 1 to 18"),
        (("{run}", "--step", "19"), "--step is 19; the run has the steps 1 to 18"),
        (("{run}", "--step", "1", "--json", "--debugger"), "--json and --debugger don't go"),
        (("{run}", "--step", "1", "--data.pth", "x"), "Unrecognized"),
        (("{run}", "--step", "1", "--", "no.py"), "there is no script no.py"),
    ],
)
def test_wrong_usage_is_told(
    command: Command, synchronised: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    names = {"empty": tmp_path, "run": synchronised}
    done = command(*(each.format(**names) for each in arguments))
    assert done.returncode == 64, done.stderr
    assert message.format(**names).lower() in done.stderr.lower()


def test_help_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from launch.main import main\n"
        "try:\n    main(['replay', '--help'])\n"
        "except SystemExit as end:\n    sys.exit(end.code or 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--micro-batch J" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
