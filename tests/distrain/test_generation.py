"""The mark of a start: the newest one alone may write, whatever has become of the mark's file."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint import CheckpointContents, newest_checkpoint
from distrain.coordinator.checkpointing import Checkpoint, CheckpointKeeper
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.generation import (
    HAS_STEPPED,
    LAUNCH,
    Generation,
    mark_in,
    refuse_stranger,
)
from distrain.coordinator.run_layout import GENERATION, steps_in
from distrain.coordinator.run_state import RunState
from distrain.errors import ConfigError

TAKEN_OVER = "a newer start has taken over the run in"

DAMAGED = {
    "empty": b"",
    "only a line's end": b"\n",
    "zeros, as after a power cut": bytes(40),
    "binary": b"\xff\xfe\x00\x81",
    "cut off": b"1",
    "no number": b"one 0123\n",
    "no number that int takes": "²³ 0123\n".encode(),
    "below zero": b"-7 0123\n",
    "more digits than int takes": b"9" * 5000 + b" 0123\n",
    "huge": b"7" * 2**21,
    "huge and blank": b" " * 2**21,
}


def superseded(generation: Generation) -> bool:
    try:
        generation.check()
    except ConfigError as error:
        return re.match(rf"{TAKEN_OVER} .*: this one \(start \d+\) ends", str(error)) is not None
    return False


@given(starts=st.integers(1, 12))
@settings(deadline=None, max_examples=12)
def test_each_start_is_numbered_and_shuts_out_all_before_it(starts: int) -> None:
    with TemporaryDirectory() as folder:
        made = [Generation(Path(folder)) for _ in range(starts)]
        assert [generation.number for generation in made] == list(range(1, starts + 1))
        assert [superseded(generation) for generation in made] == [True] * (starts - 1) + [False]


def test_of_starts_at_the_same_moment_one_alone_may_write(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Generation(tmp_path), range(8)))
    assert [superseded(generation) for generation in made].count(False) == 1
    assert [path.name for path in tmp_path.iterdir()] == [GENERATION], "no remains"


def test_two_starts_with_the_same_number_are_told_apart(tmp_path: Path) -> None:
    first = Generation(tmp_path)
    (tmp_path / GENERATION).unlink()  # --fresh, say, has moved the folder aside
    second = Generation(tmp_path)
    assert (first.number, second.number) == (1, 1)
    assert (superseded(first), superseded(second)) == (True, False)


def test_a_folder_that_is_gone_is_written_to_no_more(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    generation = Generation(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "run.old-1")
    assert superseded(generation)
    assert mark_in(tmp_path / "run") == ""


def refuses_to_write(generation: Generation) -> bool:
    try:
        generation.check()
    except (ConfigError, StorageError):
        return True
    return False


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_with_a_damaged_mark_nobody_from_before_writes(tmp_path: Path, content: bytes) -> None:
    orphan = Generation(tmp_path)
    (tmp_path / GENERATION).write_bytes(content)
    assert refuses_to_write(orphan)


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_mark_does_not_keep_a_new_start_from_taking_over(
    tmp_path: Path, content: bytes
) -> None:
    orphan = Generation(tmp_path)
    (tmp_path / GENERATION).write_bytes(content)
    newer = Generation(tmp_path)
    assert newer.number >= 1
    assert not superseded(newer)
    assert superseded(orphan)


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(deadline=None, max_examples=150)
def test_no_bytes_at_all_let_an_orphan_write_or_keep_a_new_start_out(content: bytes) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        orphan = Generation(folder)
        (folder / GENERATION).write_bytes(content)
        assert refuses_to_write(orphan)
        newer = Generation(folder)
        assert (superseded(newer), superseded(orphan)) == (False, True)


def test_a_mark_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    generation = Generation(tmp_path)
    (tmp_path / GENERATION).unlink()
    (tmp_path / GENERATION).mkdir()
    with pytest.raises(StorageError, match=rf"cannot read {re.escape(str(tmp_path))}/generation: "):
        generation.check()


def some_contents(step: int) -> CheckpointContents:
    return CheckpointContents({"model": {"weight": torch.ones(9) * step}}, {"run": {"step": step}})


def keeper_with(root: Path, check: Callable[[], None]) -> CheckpointKeeper:
    return CheckpointKeeper(Checkpoint(every_steps=1, keep_last=2), FolderStore(root), check)


def write(keeper: CheckpointKeeper, *steps: int) -> None:
    for step in steps:
        keeper.write(RunState(step=step), some_contents(step))


def bytes_in(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != GENERATION
    }


def test_a_superseded_keeper_neither_writes_nor_removes(tmp_path: Path) -> None:
    orphan = keeper_with(tmp_path / "checkpoints", Generation(tmp_path).check)
    write(orphan, 1, 2)
    newer = keeper_with(tmp_path / "checkpoints", Generation(tmp_path).check)
    before = bytes_in(tmp_path)
    for step in (2, 3, 4):
        with pytest.raises(ConfigError, match=TAKEN_OVER):
            write(orphan, step)
    assert bytes_in(tmp_path) == before
    write(newer, 3, 4)
    assert steps_in(tmp_path / "checkpoints") == [3, 4]


@pytest.mark.parametrize(("at", "there"), [(2, [1, 2]), (3, [1, 2, 3])])
def test_a_keeper_that_is_superseded_while_it_writes_removes_nothing(
    tmp_path: Path, at: int, there: list[int]
) -> None:
    """It asks again before the commit, and after it."""
    root = tmp_path / "checkpoints"
    generation = Generation(tmp_path)
    write(keeper_with(root, generation.check), 1, 2)
    before = bytes_in(tmp_path)
    checks = 0

    def taken_over_meanwhile() -> None:
        nonlocal checks
        checks += 1
        if checks == at:
            assert steps_in(root) == there
            Generation(tmp_path)
        generation.check()

    with pytest.raises(ConfigError, match=TAKEN_OVER):
        write(keeper_with(root, taken_over_meanwhile), 3)
    assert checks == at
    assert bytes_in(tmp_path).items() >= before.items()
    newest = newest_checkpoint(FolderStore(root))
    assert newest is not None
    assert (newest.step, newest.damaged) == (there[-1], [])


def test_a_keeper_with_a_damaged_mark_leaves_all_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    keeper = keeper_with(root, Generation(tmp_path).check)
    write(keeper, 1, 2)
    before = bytes_in(tmp_path)
    for content in DAMAGED.values():
        (tmp_path / GENERATION).write_bytes(content)
        with pytest.raises((ConfigError, StorageError)):
            write(keeper, 3)
    assert bytes_in(tmp_path) == before


@pytest.mark.parametrize(
    ("made_by", "is_refused"), [("ours", False), ("before", False), ("another", True), (None, True)]
)
def test_a_run_that_has_stepped_goes_on_only_where_it_or_a_launch_before_has_been(
    made_by: str | None, is_refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made_by is not None:
        monkeypatch.setenv(LAUNCH, made_by)
        Generation(tmp_path)
    monkeypatch.setenv(LAUNCH, "ours")
    refuse_stranger(tmp_path)  # of a run that has done no step there is nothing to be lost
    # Machines that were in other launches of it have met again in this one.
    monkeypatch.setenv(HAS_STEPPED, "before|long before")
    if not is_refused:
        refuse_stranger(tmp_path)
        return
    with pytest.raises(ConfigError, match=r"put run\.dir on a disk that all machines share"):
        refuse_stranger(tmp_path)
