"""Checkpoints: whole or not at all, verified byte by byte, and a run that goes on from them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint import (
    CheckpointContents,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from distrain.coordinator.checkpoint_store import DamagedCheckpointError
from distrain.coordinator.checkpointing import (
    Checkpoint,
    CheckpointKeeper,
    best_steps,
    is_scheduled,
    superfluous_steps,
)
from distrain.coordinator.early_stopping import Progress, Verdict
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.ledger import LedgerTotals
from distrain.coordinator.observers import EpochRecord
from distrain.coordinator.run_layout import folder_name, steps_in
from distrain.coordinator.run_state import RunState
from distrain.errors import ConfigError
from distrain.parallel.gradients import FlatGradients
from distrain.parallel.ownership import Replicated


def some_contents(step: int) -> CheckpointContents:
    generator = torch.Generator().manual_seed(step)
    weights = torch.randn(7, 5, generator=generator)
    tied = {"a": weights, "b": weights, "turned": weights.t()}
    return CheckpointContents(
        {"model": tied, "optimizer": {"0.step": torch.tensor(float(step))}},
        {"run": {"step": step, "loss": 0.1 + step}},
    )


def assert_same(found: CheckpointContents, wanted: CheckpointContents) -> None:
    assert found.state == wanted.state
    assert found.tensors.keys() == wanted.tensors.keys()
    for group, tensors in wanted.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(found.tensors[group][name], tensor)
            assert found.tensors[group][name].data_ptr() % 64 == 0


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_checkpoint(FolderStore(tmp_path), 12, some_contents(12))
    assert steps_in(tmp_path) == [12]
    assert_same(read_checkpoint(FolderStore(tmp_path), 12), some_contents(12))
    assert sorted(path.name for path in (tmp_path / "step-000000012").iterdir()) == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]


def test_a_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    write_checkpoint(FolderStore(tmp_path), 3, some_contents(3))
    write_checkpoint(FolderStore(tmp_path), 3, some_contents(4))
    assert_same(read_checkpoint(FolderStore(tmp_path), 3), some_contents(3))


def all_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_changed_byte_or_cut_file_is_found_and_the_one_before_is_taken(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("checkpoints")
    for step in (5, 6):
        write_checkpoint(FolderStore(root), step, some_contents(step))
    file = data.draw(st.sampled_from(all_files(root / folder_name(6))))
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    newest = newest_checkpoint(FolderStore(root))
    assert newest is not None
    assert newest.step == 5
    assert_same(newest.contents, some_contents(5))
    assert file.name in newest.damaged[0]
    assert "kept as damaged-step-000000006-1" in newest.damaged[0]
    assert steps_in(root) == [5]
    shutil.rmtree(root)


def test_with_no_good_checkpoint_left_the_run_does_not_start_over(tmp_path: Path) -> None:
    write_checkpoint(FolderStore(tmp_path), 2, some_contents(2))
    (tmp_path / folder_name(2) / "model.safetensors").unlink()
    with pytest.raises(
        StorageError, match=r"no checkpoint in .* is good.*model.safetensors is mis"
    ):
        newest_checkpoint(FolderStore(tmp_path))


def test_no_checkpoint_at_all_is_a_runs_begin(tmp_path: Path) -> None:
    assert newest_checkpoint(FolderStore(tmp_path / "none")) is None
    (tmp_path / ".step-000000003.abc.partial").mkdir()
    assert newest_checkpoint(FolderStore(tmp_path)) is None


def plant_pickle(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")


def plant_link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/etc/passwd")


def plant_parent(folder: Path) -> None:
    rewrite_body(folder, lambda text: text.replace("model.safetensors", "../model.safetensors"))


def plant_huge_header(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + content[8:])


def plant_folder(folder: Path) -> None:
    (folder / "more").mkdir()


def rewrite_body(folder: Path, change: Callable[[str], str]) -> None:
    (folder / "state.json").write_text(change((folder / "state.json").read_text()))


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (plant_pickle, r"model\.pkl does not belong to it"),
        (plant_link, "is a link or no file"),
        (plant_parent, r"state\.json is damaged"),
        (plant_huge_header, r"model\.safetensors is damaged"),
        (plant_folder, "is a link or no file"),
    ],
)
def test_what_is_planted_in_a_checkpoint_is_refused_by_name(
    tmp_path: Path, plant: Callable[[Path], None], message: str
) -> None:
    write_checkpoint(FolderStore(tmp_path), 1, some_contents(1))
    plant(tmp_path / folder_name(1))
    with pytest.raises(DamagedCheckpointError, match=message):
        read_checkpoint(FolderStore(tmp_path), 1)


def test_a_link_instead_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    write_checkpoint(FolderStore(tmp_path / "elsewhere"), 1, some_contents(1))
    (tmp_path / folder_name(1)).symlink_to(tmp_path / "elsewhere" / folder_name(1))
    with pytest.raises(DamagedCheckpointError, match="no folder of its own"):
        read_checkpoint(FolderStore(tmp_path), 1)


class PowerCut(BaseException):
    """No handler of the program's runs after it."""


@pytest.mark.parametrize("after", range(14))
def test_a_writer_that_is_cut_off_anywhere_leaves_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    write_checkpoint(FolderStore(tmp_path), 1, some_contents(1))
    done = 0

    def cut_off(function: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **keywords: object) -> object:
            nonlocal done
            if done >= after:
                raise PowerCut
            done += 1
            return function(*arguments, **keywords)

        return counted

    for name in ("mkdir", "rename", "fsync", "chmod", "pwritev"):
        monkeypatch.setattr(os, name, cut_off(getattr(os, name)))
    # Nothing is cleaned up after a power cut.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(Path, "write_bytes", cut_off(Path.write_bytes))
    try:
        write_checkpoint(FolderStore(tmp_path), 2, some_contents(2))
        whole = True
    except PowerCut:
        whole = False
    monkeypatch.undo()
    newest = newest_checkpoint(FolderStore(tmp_path))
    assert newest is not None
    assert not newest.damaged
    assert_same(newest.contents, some_contents(newest.step))
    assert newest.step == 2 or not whole


def test_a_full_disk_leaves_nothing_under_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match=r"step-000000001: No space left"):
        write_checkpoint(FolderStore(tmp_path), 1, some_contents(1))
    assert list(tmp_path.iterdir()) == []


def record(epoch: int, step: int, **scores: float) -> EpochRecord:
    return EpochRecord(epoch, step, scores, 1.0, 10.0)


def test_the_last_and_the_best_are_kept() -> None:
    losses = [0.5, 0.3, float("nan"), 0.4, 0.3, 0.6]
    epochs = [record(n + 1, 10 * (n + 1), val_loss=loss) for n, loss in enumerate(losses)]
    policy = Checkpoint(keep_last=2, keep_best=2)
    assert best_steps(policy, epochs) == [20, 50]
    steps = [10, 15, 20, 30, 40, 50, 55, 60]
    state = RunState(step=60, epochs=tuple(epochs))
    assert superfluous_steps(policy, steps, state) == [10, 15, 30, 40]
    accuracy = Checkpoint(keep_last=1, keep_best=1, monitor="accuracy")
    better = [record(1, 10, accuracy=0.5), record(2, 20, accuracy=0.9), record(3, 30, accuracy=0.7)]
    state = RunState(step=30, epochs=tuple(better))
    assert superfluous_steps(accuracy, [10, 20, 30], state) == [10]


def test_of_a_time_that_the_run_has_gone_back_from_nothing_is_kept() -> None:
    policy = Checkpoint(keep_last=2)
    assert superfluous_steps(policy, [10, 15, 20, 25, 30], RunState(step=20)) == [10, 25, 30]


def test_every_nth_is_written_and_kept_for_good(tmp_path: Path) -> None:
    policy = Checkpoint(every_steps=4, every_seconds=None, keep_last=1, keep_every=6)
    assert superfluous_steps(policy, [4, 6, 8, 12, 16, 18, 20], RunState(step=20)) == [4, 8, 16]
    keeper = CheckpointKeeper(policy, FolderStore(tmp_path), lambda: None)
    for step in range(1, 21):
        if is_scheduled(policy, RunState(step=step)):
            keeper.write(RunState(step=step), some_contents(step))
    assert steps_in(tmp_path) == [6, 12, 18, 20]


def test_a_keeper_writes_what_is_due_and_removes_what_is_superfluous(tmp_path: Path) -> None:
    policy = Checkpoint(every_steps=2, every_seconds=None, keep_last=2)
    keeper = CheckpointKeeper(policy, FolderStore(tmp_path), lambda: None)
    for step in range(1, 9):
        state = RunState(step=step)
        if is_scheduled(policy, state) or keeper.is_time():
            keeper.write(state, some_contents(step))
    assert steps_in(tmp_path) == [6, 8]
    assert {path.name for path in tmp_path.iterdir()} == {folder_name(6), folder_name(8)}


def test_seconds_make_a_checkpoint_due() -> None:
    unused = FolderStore(Path("unused"))
    always = CheckpointKeeper(Checkpoint(every_seconds=0.0), unused, lambda: None)
    never = CheckpointKeeper(Checkpoint(every_seconds=None), unused, lambda: None)
    assert always.is_time()
    assert not never.is_time()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_steps": 0}, "every_steps is 0"),
        ({"every_seconds": -1.0}, r"every_seconds is -1\.0"),
        ({"keep_last": 0}, "keep_last is 0"),
        ({"keep_every": 0}, "keep_every is 0"),
        ({"mode": "best"}, "mode is 'best'"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Checkpoint(**options)  # type: ignore[arg-type]


def test_a_runs_state_comes_back_bit_for_bit() -> None:
    totals = LedgerTotals(
        loss_sum=1 / 3,
        weight=7.0,
        num_samples=7,
        present=(1, 2),
        metric_sums=torch.tensor([0.1, 2 / 3], dtype=torch.float64),
        metric_counts=torch.tensor([2**53 + 1, 4]),
    )
    state = RunState(step=41).after_step(totals)
    ended = state.after_epoch(
        record(1, 42, loss=0.1, val_loss=float("nan")), Verdict(Progress(0.1, 1, 2), True, True)
    ).after_step(totals)
    back = RunState.from_json(json.loads(json.dumps(ended.to_json())))
    assert back.step == 43
    assert back.progress == ended.progress
    assert back.stopped
    assert back.epochs[0].scores["loss"] == 0.1
    assert back.epochs[0].scores["val_loss"] != back.epochs[0].scores["val_loss"]
    assert back.totals is not None
    assert back.totals.loss_sum == totals.loss_sum
    assert torch.equal(back.totals.metric_counts, totals.metric_counts)
    assert torch.equal(back.totals.metric_sums, totals.metric_sums)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam])
def test_an_optimizer_goes_on_as_if_it_had_not_been_interrupted(
    kind: type[torch.optim.Optimizer],
) -> None:
    def train(optimizer: torch.optim.Optimizer, net: nn.Module, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            net(inputs).square().sum().backward()
            optimizer.step()

    def make() -> tuple[torch.optim.Optimizer, nn.Module]:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        make_optimizer: Callable[..., torch.optim.Optimizer] = kind
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return make_optimizer(net.parameters(), lr=0.1, **options), net

    whole, net = make()
    train(whole, net, range(6))
    first, half = make()
    train(first, half, range(3))
    tensors, numbers = Replicated(FlatGradients(half), first).optimizer_state()
    second, rest = make()
    rest.load_state_dict(half.state_dict())
    copied = {name: t.clone() for name, t in tensors.items()}
    Replicated(FlatGradients(rest), second).load_optimizer_state(copied, numbers)
    train(second, rest, range(3, 6))
    for mine, theirs in zip(rest.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)
