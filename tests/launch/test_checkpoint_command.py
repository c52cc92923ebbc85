"""`distrain checkpoint` lists, verifies and exports what a run has saved, and changes nothing."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file

import distrain as library
from data_pipeline import Dataset
from distrain.coordinator import checkpoint_export, checkpoint_verification
from distrain.coordinator.checkpoint import read_body
from distrain.coordinator.checkpoint_store import CheckpointStore, DamagedCheckpointError
from distrain.coordinator.run_layout import steps_in
from launch.main import main
from tests.alone import distrain_alone
from tests.conftest import ROOT, clean_environment
from tests.run_folders import named

STEPS = [6, 12, 16, 18]
OPTIONS = (
    *("--training.epochs", 3, "--checkpoint.every_steps", 4, "--checkpoint.keep_every", 6),
    *("--checkpoint.keep_best", 1, "--average.name", "ema", "--average.decay", 0.5),
    "--early-stopping.no-restore-best",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A run of 18 steps in 3 epochs, of a CNN with batch norm and an average."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    job = ROOT / "examples" / "digits.toml"
    done = distrain_alone("train", job, "--data.path", digits, "--run.dir", folder, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "digits"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `distrain checkpoint` in this process: exit code, what was printed, what was said."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["checkpoint", *map(str, arguments)])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return call


Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("columns", [60, 80])
def test_list_names_what_keeps_each_and_fits_the_terminal(
    columns: int, finished: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, shown, _ = command("list", finished)
    assert code == 0
    lines = shown.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].split() == ["step", "epoch", "size", "written", "val_loss", "kept", "as"]
    text = " ".join(shown.split())
    losses = {event["step"]: f"{event['val_loss']:.4f}" for event in named(finished, "epoch")}
    assert f"{losses[6]} every 6 12 2 end" in text
    assert text.endswith(f"{losses[18]} last, best, every 6")
    assert [line.split()[0] for line in lines[1:] if line[:4].strip()] == list(map(str, STEPS))


def test_list_tells_a_program_all_scores(finished: Path, command: Command) -> None:
    found = json.loads(command("list", finished, "--json")[1])
    assert found["damaged"] == []
    epochs = {event["step"]: event for event in named(finished, "epoch")}
    assert [one["step"] for one in found["checkpoints"]] == STEPS
    for one in found["checkpoints"]:
        folder = finished / "checkpoints" / f"step-{one['step']:09d}"
        assert one["path"] == str(folder)
        assert one["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
        assert one["ends_epoch"] == (one["step"] in epochs)
        told = epochs.get(one["step"], {})
        assert one["scores"] == {name: told[name] for name in one["scores"]}
        assert bool(one["scores"]) == one["ends_epoch"]
        assert one["epoch"] == -(-one["step"] // 6)
    assert [one["kept_by"] for one in found["checkpoints"]] == [
        ["every 6"],
        ["every 6"],
        ["last"],
        ["last", "best", "every 6"],
    ]


def test_list_needs_no_torch_and_shows_what_cannot_be_read(run: Path) -> None:
    job = (run / "job.toml").read_text()
    (run / "job.toml").write_text(job.replace("keep_best = 1", "keep_best = 0"))
    (run / "checkpoints" / "step-000000012" / "state.json").write_text("{")
    (run / "checkpoints" / "damaged-step-000000004-1").mkdir()
    program = (
        "import sys\nfrom launch.main import main\n"
        f"try:\n    main(['checkpoint', 'list', {str(run)!r}])\n"
        "except SystemExit as ended:\n    sys.exit(ended.code or 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 12: state.json: JSONDecodeError" in done.stdout
    assert "set aside by the run: damaged-step-000000004-1" in done.stdout


def test_a_run_without_checkpoints_and_a_folder_without_a_run(
    tmp_path: Path, command: Command
) -> None:
    (tmp_path / "status.json").write_text("{}")
    assert command("list", tmp_path)[:2] == (0, f"no checkpoint yet in {tmp_path}/checkpoints\n")
    code, _, said = command("verify", tmp_path)
    assert code == 64
    assert "the run has written none yet" in said
    for action in (["list"], ["verify"]):
        code, _, said = command(*action, tmp_path / "none")
        assert code == 64
        assert "there is no run in" in said


def test_verify_names_each_damage_with_65_and_moves_nothing(run: Path, command: Command) -> None:
    assert command("verify", run)[0] == 0
    root = run / "checkpoints"
    with (root / "step-000000012" / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    optimizer = root / "step-000000012" / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    (root / "step-000000016" / "model.safetensors").unlink()
    before = sorted(root.rglob("*"))
    code, shown, said = command("verify", run)
    assert code == 65
    lines = shown.splitlines()
    assert [line.partition(",")[0] for line in lines if line.startswith("step")] == [
        "step 6: good",
        "step 12: damaged",
        "step 16: damaged",
        "step 18: good",
    ]
    assert lines[2].startswith("  model.safetensors is damaged within bytes 0 to ")
    size = optimizer.stat().st_size
    assert lines[3] == f"  optimizer.safetensors has {size:,} bytes, not {size + 1:,}"
    assert lines[5] == "  model.safetensors is missing"
    assert "damaged: steps 12, 16 of 4 checkpoints in" in said
    assert sorted(root.rglob("*")) == before
    assert command("verify", run, "--step", 18)[0] == 0
    assert command("verify", run, "--step", 16)[0] == 65
    code, _, said = command("verify", run, "--step", 7)
    assert code == 64
    assert "there are: 6, 12, 16, 18" in said


def test_a_checkpoint_that_the_run_removes_meanwhile_is_said_so(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed_before(
        store: CheckpointStore, step: int, found: Mapping[str, int]
    ) -> dict[str, Any]:
        if step == 6:
            store.remove(step)
        return read_body(store, step, found)

    monkeypatch.setattr(checkpoint_verification, "read_body", removed_before)
    code, shown, _ = command("verify", run)
    assert code == 0
    assert shown.startswith("step 6: removed by the run meanwhile\nstep 12: good")

    def all_removed(store: CheckpointStore, step: int) -> None:
        shutil.rmtree(store.where)
        raise DamagedCheckpointError(f"step {step}: state.json is missing")

    monkeypatch.setattr(checkpoint_export, "read_checkpoint", all_removed)
    code, _, said = command("export", run, run / "weights.safetensors")
    assert code == 65
    assert "the checkpoint of step 18 was removed while it was read" in said
    assert not (run / "weights.safetensors").exists()


LOADER = """\
import sys
sys.modules["distrain"] = sys.modules["data_pipeline"] = None
import numpy, torch
import load_best as exported
images = torch.from_numpy(numpy.load("images.npy"))
with torch.no_grad():
    numpy.save("outputs.npy", exported.load()(exported.scaled(images)).numpy())
"""


def raw(digits: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The validation part as it is stored."""
    data = Dataset(digits, "validation")
    images = np.empty((data.num_rows, 1, 8, 8), np.uint8)
    labels = np.empty(data.num_rows, np.int64)
    for name, out in (("image", images), ("label", labels)):
        data.gather(name, np.arange(data.num_rows), out)
    return images, labels


def test_exported_weights_score_as_recorded_without_distrain_and_as_onnx(
    finished: Path, digits: Path, command: Command, tmp_path: Path
) -> None:
    # Keep_best's epoch was measured with the average.
    code, shown, _ = command("export", finished, tmp_path / "best.safetensors", "--best")
    assert code == 0
    assert "the average of the weights up to step 18" in shown
    assert f"{tmp_path / 'load_best.py'}: load_best.load()" in shown
    images, labels = raw(digits)
    np.save(tmp_path / "images.npy", images)
    subprocess.run([sys.executable, "-c", LOADER], cwd=tmp_path, env=plain(), check=True)
    outputs = np.load(tmp_path / "outputs.npy")
    recorded = named(finished, "epoch")[-1]["val_accuracy"]
    assert (outputs.argmax(1) == labels).mean() == pytest.approx(recorded, abs=1e-9)

    path = tmp_path / "best.onnx"
    assert command("export", finished, path, "--best", "--format", "onnx")[0] == 0
    statistics = Dataset(digits, "train").statistics["image"]
    inputs = ((images - statistics.mean[0]) / statistics.std[0]).astype(np.float32)
    found = onnx_outputs(path, inputs[:50])
    np.testing.assert_allclose(found, outputs[:50], rtol=1e-4, atol=1e-5)


def onnx_outputs(path: Path, images: np.ndarray[Any, Any]) -> Any:
    """What ONNX's own evaluator computes from the file."""
    (outputs,) = ReferenceEvaluator(onnx.load(path)).run(None, {"image": images})
    return outputs


def plain() -> dict[str, str]:
    """An environment in which distrain can't be found."""
    return {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}


def test_each_kind_of_weights_is_the_checkpoints_own(
    finished: Path, command: Command, tmp_path: Path
) -> None:
    folder = finished / "checkpoints" / "step-000000012"
    assert command("export", finished, tmp_path / "m.safetensors", "--step", 12)[0] == 0
    model, held = load_file(tmp_path / "m.safetensors"), load_file(folder / "model.safetensors")
    assert model.keys() == held.keys()
    assert all(torch.equal(model[name], held[name]) for name in held)
    arguments = ("--step", 12, "--average")
    assert command("export", finished, tmp_path / "a.safetensors", *arguments)[0] == 0
    average, held = load_file(tmp_path / "a.safetensors"), load_file(folder / "average.safetensors")
    assert average.keys() == model.keys()
    assert all(torch.equal(average[name], held[f"module.{name}"]) for name in average)
    assert not torch.equal(average["0.weight"], model["0.weight"])


def test_export_refuses_what_it_would_write_over_or_cannot_find(
    run: Path, command: Command, tmp_path: Path
) -> None:
    def refused(code: int, message: str, *arguments: object) -> None:
        found, _, said = command("export", run, *arguments)
        assert (found, message in said) == (code, True), said

    out = tmp_path / "weights.safetensors"
    (tmp_path / "load_weights.py").write_text("mine")
    refused(64, "load_weights.py is there already", out)
    (tmp_path / "load_weights.py").unlink()
    refused(64, "give a name that ends in .safetensors", tmp_path / "weights.bin")
    refused(64, "give a name that ends in .onnx", out, "--format", "onnx")
    refused(64, "--job goes with --format onnx", out, "--job", run / "job.toml")
    refused(64, "there are: 6, 12, 16, 18", out, "--step", 5)
    refused(64, "--step is -1", out, "--step", -1)
    refused(64, "step 6 has no best weights", out, "--step", 6, "--best")
    refused(74, "cannot write", tmp_path / "none" / "weights.safetensors")
    (run / "checkpoints" / "step-000000018" / "model.safetensors").write_bytes(b"")
    refused(65, "model.safetensors has 0 bytes", out)
    assert not out.exists()
    assert steps_in(run / "checkpoints") == STEPS


OWN_MODEL = """\
from torch import nn

def build(num_outputs, width):
    hidden = nn.Linear(64, width)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Linear(width, num_outputs))

def other(num_outputs, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs))
"""


def test_a_models_own_code_is_imported_only_where_the_job_file_is_named(
    digits: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_model.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    job = tmp_path / "own.toml"
    job.write_text(
        f'[data]\npath = "{digits}"\ninputs = "image"\ntarget = "label"\n'
        '[model]\nbuild = "own_model:build"\n[model.options]\nwidth = 5\n'
        f'[training]\nepochs = 1\n[run]\ndir = "{tmp_path / "run"}"\n'
        "[checkpoint]\nevery_steps = 6\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", str(job)])
    assert not ended.value.code
    out = tmp_path / "own.onnx"
    code, _, said = command("export", tmp_path / "run", out, "--format", "onnx")
    assert code == 64
    assert "imports no code: for ONNX, name the job file with --job" in said
    assert command("export", tmp_path / "run", out, "--format", "onnx", "--job", job)[0] == 0
    images, _ = raw(digits)
    inputs = images[:3].astype(np.float32)
    found = onnx_outputs(out, inputs)
    weights = load_file(tmp_path / "run" / "model.safetensors")
    hidden = inputs.reshape(3, 64) @ weights["1.weight"].numpy().T + weights["1.bias"].numpy()
    wanted = np.maximum(hidden, 0) @ weights["3.weight"].numpy().T + weights["3.bias"].numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)

    code, shown, _ = command("export", tmp_path / "run", tmp_path / "w.safetensors")
    assert code == 0
    assert "load_w.load(model)" in shown
    assert "it takes a model, and builds none: the model is built by own_model:build" in shown
    job.write_text(job.read_text().replace("own_model:build", "own_model:other"))
    out.unlink()
    code, _, said = command("export", tmp_path / "run", out, "--format", "onnx", "--job", job)
    assert code == 78
    assert "the weights don't fit the model that the job builds" in said


def test_a_scripts_run_is_listed_and_its_weights_load_into_its_model(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns: dict[str, np.ndarray[Any, Any]] = {
        "x": np.eye(8, 3, dtype=np.float32),
        "y": np.arange(8) % 2,
    }
    trainer = library.Trainer(
        model=lambda: torch.nn.Linear(3, 2),
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        inputs="x",
        target="y",
        run=tmp_path / "run",
        early_stopping=library.EarlyStopping("loss", patience=9, mode="max", restore_best=True),
        checkpoint=library.Checkpoint(every_steps=1, keep_last=1, keep_every=4),
        progress=False,
    )
    trainer.fit(Dataset.from_arrays(columns), epochs=3, global_batch=4)
    found = json.loads(command("list", tmp_path / "run", "--json")[1])["checkpoints"]
    assert [(one["step"], one["kept_by"]) for one in found] == [(4, ["every 4"]), (6, ["last"])]
    code, _, said = command("export", tmp_path / "run", tmp_path / "w.onnx", "--format", "onnx")
    assert code == 64
    assert "was made by a script, which alone can build its model" in said
    # The best is the first epoch, by the highest loss: not what the newest checkpoint goes on with.
    out = tmp_path / "my-weights.safetensors"
    code, shown, _ = command("export", tmp_path / "run", out, "--best")
    assert code == 0
    assert "the best epoch's weights, of those up to step 6" in shown
    assert "it takes a model, and builds none: the run" in shown
    monkeypatch.syspath_prepend(tmp_path)
    import load_my_weights  # type: ignore[import-not-found] # noqa: PLC0415 - just written

    loaded = load_my_weights.load(torch.nn.Linear(3, 2))
    assert not loaded.training
    last = load_file(tmp_path / "run" / "checkpoints" / "step-000000006" / "model.safetensors")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert not torch.equal(last[name], tensor)
