"""Verification finds what a run would refuse; exported programs build the models they load."""

import re
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from data_pipeline.errors import DataError
from data_pipeline.standardize import Standardization
from distrain.coordinator import checkpoint, checkpoint_verification, tensor_file
from distrain.coordinator.checkpoint import (
    CheckpointContents,
    read_checkpoint,
    write_checkpoint,
)
from distrain.coordinator.checkpoint_export import chosen_weights, removed_text
from distrain.coordinator.checkpoint_listing import listed_checkpoints
from distrain.coordinator.checkpoint_store import DamagedCheckpointError
from distrain.coordinator.checkpoint_verification import RemovedCheckpointError, damages
from distrain.coordinator.checkpointing import Checkpoint, CheckpointKeeper
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.run_folder import state_bytes
from distrain.coordinator.run_layout import steps_in
from distrain.coordinator.run_state import RunState
from distrain.errors import ConfigError, UsageError
from distrain.learn.models import cnn, mlp
from distrain.practice import onnx_export
from distrain.practice.export_snippet import snippet
from distrain.practice.job_model import JobModel
from distrain.practice.onnx_export import onnx_bytes

CHUNK = 100


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of step 7, whose digests are of chunks of 100 bytes."""
    root = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tensor_file, "CHUNK_BYTES", CHUNK)
        tensors = {"model": {"w": torch.arange(90.0)}, "optimizer": {"m": torch.ones(3)}}
        write_checkpoint(FolderStore(root), 7, CheckpointContents(tensors, {"run": {"step": 7}}))
    return root


def harm(folder: Path, how: str, place: int) -> tuple[str, int]:
    """Does it, to the file at that place of all; its name, and which byte was changed."""
    files = sorted(folder.iterdir())
    path = files[place % len(files)]
    content = path.read_bytes()
    at = place % len(content)
    if how == "flip":
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    elif how == "cut":
        path.write_bytes(content[:at])
    elif how == "append":
        path.write_bytes(content + b"\0")
    elif how == "remove":
        path.unlink()
    elif how == "link":
        shutil.move(path, folder.parent / "elsewhere")
        path.symlink_to(folder.parent / "elsewhere")
    elif how == "add":
        path = folder / "more.safetensors"
        path.write_bytes(content)
    elif how == "forbid":
        path.unlink()
        path.mkdir()
    return path.name, at


HARMS = ("flip", "cut", "append", "remove", "link", "add", "forbid")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(HARMS), st.integers(0, 10**6))
def test_verify_names_the_file_wherever_a_run_would_refuse_the_checkpoint(
    written: Path, tmp_path_factory: pytest.TempPathFactory, how: str, place: int
) -> None:
    root = Path(shutil.copytree(written, tmp_path_factory.mktemp("harmed") / "checkpoints"))
    with pytest.MonkeyPatch.context() as patched:
        for room in (checkpoint, checkpoint_verification, tensor_file):
            patched.setattr(room, "CHUNK_BYTES", CHUNK)
        assert damages(FolderStore(root), 7) == []
        read_checkpoint(FolderStore(root), 7)
        name, at = harm(root / "step-000000007", how, place)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(FolderStore(root), 7)
        found = damages(FolderStore(root), 7)
    assert len(found) == 1
    assert found[0].startswith(name)
    if how == "flip" and name != "state.json":
        start, stop = found[0].partition("within bytes ")[2].partition(":")[0].split(" to ")
        assert int(start.replace(",", "")) <= at <= int(stop.replace(",", ""))
        assert int(stop.replace(",", "")) - int(start.replace(",", "")) < CHUNK


def test_a_checkpoint_whose_folder_is_a_link_or_of_another_step_is_damaged(
    written: Path, tmp_path: Path
) -> None:
    (tmp_path / "step-000000008").symlink_to(written / "step-000000007")
    assert damages(FolderStore(tmp_path), 8) == ["step-000000008 is no folder of its own"]
    shutil.copytree(written / "step-000000007", tmp_path / "step-000000009")
    assert "state.json is of step 7, not 9" in damages(FolderStore(tmp_path), 9)


def of(model: nn.Module, shape: tuple[int, ...], scaling: Standardization | None) -> JobModel:
    return JobModel(
        build=lambda: model,
        inputs=torch.zeros(2, *shape),
        column="x",
        scaling=scaling,
        is_prepared=False,
    )


def by_channel(count: int) -> Standardization:
    scale = np.linspace(0.1, 1 / 3, count, dtype=np.float32)
    return Standardization(scale, -7 * scale, 1)


@pytest.mark.parametrize(
    ("model", "shape", "scaling"),
    [
        (cnn((3, 9, 8), 5), (3, 9, 8), by_channel(3)),
        (cnn((1, 8, 8), None, channels=[4], batch_norm=False, dropout=0), (1, 8, 8), None),
        (mlp((4,), 3), (4,), by_channel(4)),
        (mlp((11,), None, hidden=[], activation="tanh"), (11,), by_channel(11)),
        (mlp((2, 3), 2, hidden=[5, 4], activation="gelu", dropout=0.1), (2, 3), None),
        (mlp((), None, batch_norm=True, activation="sigmoid"), (), None),
    ],
)
def test_an_exported_program_builds_and_feeds_the_model_that_was_saved(
    model: nn.Module, shape: tuple[int, ...], scaling: Standardization | None, tmp_path: Path
) -> None:
    (tmp_path / "w.safetensors").write_bytes(state_bytes(model.state_dict()))
    text = snippet("w.safetensors", "some weights", of(model, shape, scaling))
    assert max(map(len, text.splitlines())) <= 110
    program: dict[str, Any] = {"__file__": str(tmp_path / "load_w.py")}
    exec(text, program)
    raw = torch.randint(0, 256, (6, *shape), dtype=torch.uint8)
    inputs = raw.float()
    if scaling is not None:
        scaled = np.empty(inputs.shape, np.float32)
        scaling.apply(raw.numpy(), scaled)
        inputs = torch.from_numpy(scaled)
        assert torch.equal(program["scaled"](raw), inputs)
    assert "distrain" not in text
    with torch.no_grad():
        assert torch.equal(program["load"]()(inputs), model.eval()(inputs))


class ByValue(nn.Module):
    """Goes by what it is fed with: no graph of operations can say that."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs if inputs.sum() > 0 else -inputs


def test_what_cannot_be_exported_to_onnx_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError, match="torch can't export this model to ONNX: "):
        onnx_bytes(ByValue(), torch.zeros(2, 3), "x")
    monkeypatch.setattr(onnx_export, "MOST_BYTES", 10)
    with pytest.raises(ConfigError, match="the model has 48 bytes, and an ONNX file holds 10"):
        onnx_bytes(nn.Linear(2, 4), torch.zeros(2, 2), "x")
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if "script" in name else name)
    with pytest.raises(UsageError, match=r"ONNX needs onnxscript: pip install 'distrain\[onnx\]'"):
        onnx_bytes(nn.Linear(2, 4), torch.zeros(2, 2), "x")


def test_a_run_that_goes_on_meanwhile_never_makes_a_checkpoint_look_damaged(
    tmp_path: Path,
) -> None:
    policy = Checkpoint(every_steps=1, keep_last=1)
    keeper = CheckpointKeeper(policy, FolderStore(tmp_path), lambda: None)
    held = CheckpointContents({"model": {"w": torch.ones(9)}}, {"run": {"step": 0, "epochs": []}})

    def write() -> None:
        for step in range(1, 151):
            keeper.write(RunState(step=step), held)

    writer = threading.Thread(target=write)
    writer.start()
    good, refused = 0, set()
    while writer.is_alive():
        for step in steps_in(tmp_path):
            try:
                assert damages(FolderStore(tmp_path), step) == []
                read = chosen_weights(FolderStore(tmp_path), step, "model", None)
                assert torch.equal(read.tensors["w"], torch.ones(9))
                good += 1
            except RemovedCheckpointError:
                continue
            except (DataError, UsageError) as error:
                refused.add(re.sub(r"\d+", "N", str(error).replace(str(tmp_path), "ROOT")))
        assert all(not one.problem for one in listed_checkpoints(FolderStore(tmp_path)))
    writer.join()
    assert good > 0
    removed, absent = removed_text(0).replace("0", "N"), "there is no checkpoint of step N in ROOT"
    assert all(text == removed or text.startswith(absent) for text in refused)
    assert steps_in(tmp_path) == [150]
