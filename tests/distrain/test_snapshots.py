"""Snapshots in the host's shared memory: whole or none, of this run alone, gone with its end."""

import mmap
import os
import random
import secrets
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import StorageError
from distrain.coordinator import host_memory
from distrain.coordinator.checkpoint import CheckpointContents, read_checkpoint, write_checkpoint
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.host_memory import (
    NoRoomError,
    SnapshotFolder,
    memory_left,
    own_memory,
    read_snapshot,
)
from distrain.coordinator.pace import MOST_SHARE, Pace
from distrain.coordinator.run_folder import RunFolder
from distrain.coordinator.run_layout import RUNNING, folder_name, steps_in
from distrain.coordinator.slots import Slots
from distrain.coordinator.snapshot import HEAD_BYTES, Slot, read_contents, read_state, slot_bytes
from distrain.coordinator.snapshot_keeper import is_over
from distrain.coordinator.stops import StoppedError
from distrain.coordinator.taking_up import Found, newest_state
from distrain.errors import ConfigError, DistrainError, LostPeerError, ProgramError
from distrain.parallel.world import World
from tests.alone import script_alone
from tests.conftest import PROGRAMS, Completed
from tests.run_folders import last_step, named, status, told
from tests.thread_workers import outcomes


def some_contents(step: int, *, num_floats: int = 35, words: int = 0) -> CheckpointContents:
    weights = torch.randn(num_floats, generator=torch.Generator().manual_seed(step)).view(-1, 5)
    tensors = {"model": {"w": weights, "t": weights.t()}, "optimizer": {"n": torch.tensor(step)}}
    return CheckpointContents(tensors, {"run": {"step": step, "words": "x" * words}})


def assert_same(found: CheckpointContents | None, wanted: CheckpointContents) -> None:
    assert found is not None
    assert found.state == wanted.state
    for group, tensors in wanted.tensors.items():
        assert found.tensors[group].keys() == tensors.keys()
        assert all(torch.equal(found.tensors[group][name], t) for name, t in tensors.items())


def filled(step: int) -> mmap.mmap:
    memory = own_memory(0, slot_bytes(some_contents(step)))
    Slot(memory).fill(step, some_contents(step))
    return memory


@given(at=st.integers(0, HEAD_BYTES - 1), flipped=st.integers(1, 255))
def test_a_slot_is_read_as_it_was_filled_or_not_at_all(at: int, flipped: int) -> None:
    memory = filled(7)
    assert_same(read_contents(memory), some_contents(7))
    memory[at] ^= flipped
    told_of = read_state(memory)
    assert (told_of is None) == (at < 56), "the head's fields, and nothing behind them, count"


def test_a_copy_that_is_cut_off_leaves_no_state_in_its_slot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = own_memory(0, slot_bytes(some_contents(1)))
    slot = Slot(memory)
    slot.fill(1, some_contents(1))
    monkeypatch.setattr("distrain.coordinator.snapshot.copy_group", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        slot.fill(2, some_contents(2))
    assert (slot.step, read_contents(memory)) == (None, None)


def test_the_newest_snapshot_and_the_one_that_is_written_are_left_alone() -> None:
    slots = Slots(own_memory, is_read=True, keeps_newest=True)
    first = slots.take(1, some_contents(1))
    assert first is not None
    for step in range(2, 6):
        taken = slots.take(step, some_contents(step), read=first[0])
        assert taken is not None
        assert_same(taken[1], some_contents(step))
        assert_same(first[1], some_contents(1))
    grown = slots.take(6, some_contents(6, num_floats=10_000, words=200_000))
    assert grown is not None
    assert_same(grown[1], some_contents(6, num_floats=10_000, words=200_000))


def test_without_room_for_a_third_slot_none_is_taken_during_a_write() -> None:
    def two(number: int, num_bytes: int) -> mmap.mmap:
        if number == 2:
            raise NoRoomError
        return own_memory(number, num_bytes)

    slots = Slots(two, is_read=True, keeps_newest=True)
    first, second = slots.take(1, some_contents(1)), slots.take(2, some_contents(2))
    assert first is not None
    assert second is not None
    assert slots.take(3, some_contents(3), read=first[0]) is None
    assert slots.take(4, some_contents(4)) is not None


def begun(root: Path, run_id: str = "a") -> SnapshotFolder:
    folder = SnapshotFolder(Path("runs/x"), root=root)
    folder.begin(run_id, secrets.token_hex(8))
    return folder


def take(folder: SnapshotFolder, *steps: int) -> None:
    slots = Slots(folder.allocate, is_read=False, keeps_newest=True)
    for step in steps:
        slots.take(step, some_contents(step))


def test_the_next_start_finds_the_newest_of_its_own_run(tmp_path: Path) -> None:
    take(begun(tmp_path), 4, 5, 6)
    take(begun(tmp_path, "another"), 7, 8)
    later = SnapshotFolder(Path("runs/../runs/x"), root=tmp_path)
    found = later.newest("a", most_step=99)
    assert found is not None
    assert found[0] == 6
    assert_same(read_snapshot(found[1]), some_contents(6))
    earlier = later.newest("a", most_step=5)
    assert earlier is not None
    assert earlier[0] == 5
    assert later.newest("a", most_step=4) is None
    assert later.newest("b", most_step=99) is None
    assert SnapshotFolder(Path("runs/y"), root=tmp_path).newest("a", 99) is None
    later.begin("a", "1f")
    later.forget_others()
    assert later.newest("a", most_step=99) is None
    later.remove()
    assert list(tmp_path.iterdir()) == []


def make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def make_file(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.write_text("")


def test_a_run_that_has_gone_back_forgets_what_came_later(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    slots = Slots(folder.allocate, is_read=True, keeps_newest=True)
    for step in (8, 9):
        slots.take(step, some_contents(step))
    slots.clear()
    assert folder.newest("a", most_step=99) is None
    slots.take(5, some_contents(5))
    found = folder.newest("a", most_step=99)
    assert found is not None
    assert found[0] == 5


@pytest.mark.parametrize("spoil", [make_link, make_file, lambda path: path.chmod(0o755)])
def test_what_others_could_have_put_there_is_not_read(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder = begun(tmp_path)
    take(folder, 1)
    spoil(folder.path)
    assert folder.newest("a", most_step=9) is None
    with pytest.raises(NoRoomError, match=r"is no folder|is another user's, or open to others"):
        folder.begin("a", "1f")
    folder.remove()
    assert folder.path.exists() or folder.path.is_symlink(), "it is none of ours to remove"


def test_another_users_folder_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(tmp_path)
    take(folder, 1)
    assert folder.newest("a", most_step=9) is not None
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert folder.newest("a", most_step=9) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b"null", b'{"owner": "b"}'])
def test_a_start_that_does_not_say_whose_it_is_is_passed_over(
    tmp_path: Path, content: bytes
) -> None:
    folder = begun(tmp_path)
    take(folder, 1)
    next(folder.path.glob("start-*/run.json")).write_bytes(content)
    assert folder.newest("a", most_step=9) is None


def test_memory_that_is_short_is_told_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (memory_left() or 0) > 2**20
    monkeypatch.setattr(host_memory, "memory_left", lambda: 1000)
    for allocate in (own_memory, begun(tmp_path).allocate):
        assert len(allocate(0, 500)) == 500
        with pytest.raises(NoRoomError, match="501 bytes would take more than half of the 1,000"):
            allocate(0, 501)


def test_shared_memory_that_is_too_small_is_told_and_not_written_beyond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = begun(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoomError, match="has no room for 500 bytes: No space left on device"):
        folder.allocate(0, 500)
    assert list(folder.path.glob("start-*/slot-*")) == []
    with pytest.raises(NoRoomError, match="No such file"):
        SnapshotFolder(Path("runs/x"), root=tmp_path / "missing").begin("a", "1f")


def test_snapshots_are_as_frequent_as_their_cost_allows() -> None:
    pace, cost_s, now_s, taken = Pace(None), 0.001, 0.0, 0
    noise = random.Random(0)
    for step in range(1, 3001):
        now_s += 0.004
        if pace.is_due(step, now_s):
            seconds = cost_s * noise.choice([1, 10, 30])  # the machine has more to do
            now_s += seconds
            pace.took(seconds, now_s)
            taken += 1
    assert 0.5 < taken / (now_s * MOST_SHARE / cost_s) <= 1.0
    often = Pace(None)
    for step in range(1, 10):
        assert often.is_due(step, step * 1.0)
        often.took(cost_s, step * 1.0)
    assert [step for step in range(9) if Pace(3).is_due(step, 0.0)] == [0, 3, 6]
    assert not Pace(0).is_due(1, 1e9)


@dataclass
class Host:
    """What one worker finds: its host's snapshots, and on rank 0 the run's folder."""

    run: RunFolder | None
    snapshots: SnapshotFolder | None


def found_by(hosts: list[Host]) -> list[Found | BaseException]:
    def work(world: World) -> Found:
        host = hosts[world.rank]
        store = None if host.run is None else FolderStore(host.run.path / "checkpoints")
        return newest_state(host.run, store, host.snapshots, world)

    return outcomes(len(hosts), work)


def host_with(root: Path, run_id: str, *steps: int) -> SnapshotFolder:
    root.mkdir()
    folder = begun(root, run_id)
    take(folder, *steps)
    return folder


# By host, the steps of its snapshots; the disk has one of step 4, and the log tells of 9 steps.
@pytest.mark.parametrize(
    ("steps", "newest", "from_memory"),
    [
        ([(7, 8), (5, 6), ()], 8, True),
        ([(1, 2), (7, 8), (5, 6)], 8, True),
        ([(), (), (9, 10)], 9, True),  # 10 is beyond the log
        ([(3, 4), (2, 3), ()], 4, False),
        ([(), (), ()], 4, False),
    ],
)
def test_the_newest_state_comes_to_rank_0_wherever_it_is(
    tmp_path: Path,
    logged_run: RunFolder,
    steps: list[tuple[int, ...]],
    newest: int,
    from_memory: bool,
) -> None:
    write_checkpoint(FolderStore(logged_run.path / "checkpoints"), 4, some_contents(4))
    hosts = [
        Host(logged_run if n == 0 else None, host_with(tmp_path / str(n), logged_run.run_id, *own))
        for n, own in enumerate(steps)
    ]
    first, *others = found_by(hosts)
    assert isinstance(first, Found)
    assert (first.step, first.is_from_memory) == (newest, from_memory)
    assert_same(first.contents, some_contents(newest))
    for other in others:
        assert isinstance(other, Found)
        assert (other.step, other.is_from_memory) == (newest, from_memory)
        assert other.contents is None


def test_a_snapshot_stands_in_for_checkpoints_that_are_damaged(
    tmp_path: Path, logged_run: RunFolder
) -> None:
    write_checkpoint(FolderStore(logged_run.path / "checkpoints"), 8, some_contents(8))
    (logged_run.path / "checkpoints" / folder_name(8) / "state.json").write_text("{}")
    (found,) = found_by([Host(logged_run, host_with(tmp_path / "0", logged_run.run_id, 6, 7))])
    assert isinstance(found, Found)
    assert (found.step, found.is_from_memory) == (7, True)
    assert "state.json" in found.damaged[0]
    write_checkpoint(FolderStore(logged_run.path / "checkpoints"), 8, some_contents(8))
    (logged_run.path / "checkpoints" / folder_name(8) / "state.json").write_text("{}")
    (failed,) = found_by([Host(logged_run, None)])
    assert isinstance(failed, StorageError)


def test_a_run_that_begins_anew_in_a_folder_is_another_one(
    tmp_path: Path, logged_run: RunFolder
) -> None:
    before = logged_run.run_id
    assert len(before) == 32
    logged_run.begin({}, {"world_size": 1}, 1, 9, goes_on=True)
    logged_run.write_status(RUNNING)
    assert logged_run.run_id == before
    snapshots = host_with(tmp_path / "0", before, 6, 7)
    logged_run.begin({}, {"world_size": 1}, 1, 9, goes_on=False)
    assert logged_run.run_id != before
    (found,) = found_by([Host(logged_run, snapshots)])
    assert found == Found(0, None, is_from_memory=False)


@pytest.mark.parametrize(
    ("error", "over"),
    [
        (None, True),
        (StoppedError("SIGTERM"), True),
        (ProgramError("no"), True),
        (RuntimeError("no"), True),
        (LostPeerError("gone"), False),
        (RuntimeError("[/gloo/transport] Connection closed by peer"), False),
        (StorageError("full"), False),
        (ConfigError("a newer start has taken over"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_snapshots_are_kept_for_a_start_that_can_use_them(
    error: BaseException | None, over: bool
) -> None:
    assert issubclass(ProgramError, DistrainError)
    assert is_over(error) == over


def program(*arguments: object) -> Completed:
    return script_alone(PROGRAMS / "snapshots.py", *arguments)


def nothing_is_left(run: Path) -> bool:
    return not SnapshotFolder(run).path.exists()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """The digest and the folder of the run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    ended = program(folder)
    assert ended.returncode == 0, ended.stderr
    assert nothing_is_left(folder)
    return ended.stdout, folder


@pytest.mark.parametrize(("moment", "lost"), [("--kill-in-step", 0), ("--kill-in-copy", 1)])
def test_a_killed_run_goes_on_from_memory_and_stops_onto_the_disk(
    tmp_path: Path, unbroken: tuple[str, Path], moment: str, lost: int
) -> None:
    """The second start is stopped in its first step, the third one ends."""
    run = tmp_path / "run"
    assert program(run, moment, 7).returncode == -signal.SIGKILL
    step = last_step(run) - lost
    assert step > 1
    assert not nothing_is_left(run)
    stopped = program(run, "--hang-in-step", 0)
    assert stopped.returncode == 75, stopped.stderr
    assert [event["source"] for event in named(run, "resume")] == ["memory"]
    assert (steps_in(run / "checkpoints"), status(run)["step"]) == ([step], step)
    assert nothing_is_left(run)
    ended = program(run)
    assert (ended.returncode, ended.stdout) == (0, unbroken[0]), ended.stderr
    assert named(run, "resume")[-1]["source"] == "disk"
    assert told(run) == told(unbroken[1])


@pytest.mark.parametrize("operation", [3, 8])
def test_a_run_killed_while_it_writes_in_the_background_leaves_whole_checkpoints(
    tmp_path: Path, unbroken: tuple[str, Path], operation: int
) -> None:
    """Before a sync, and before the rename, of the second one; the loop is some steps on."""
    run = tmp_path / "run"
    assert program(run, "--kill-in-write", operation).returncode == -signal.SIGKILL
    assert steps_in(run / "checkpoints") == [4]
    assert read_checkpoint(FolderStore(run / "checkpoints"), 4).state["run"]["step"] == 4
    SnapshotFolder(run).remove()  # as after a power cut
    ended = program(run)
    assert (ended.returncode, ended.stdout) == (0, unbroken[0]), ended.stderr
    assert [(event["source"], event["step"]) for event in named(run, "resume")] == [("disk", 4)]
    assert told(run) == told(unbroken[1])


def test_a_run_that_is_to_begin_anew_leaves_a_killed_ones_snapshots_alone(
    tmp_path: Path, unbroken: tuple[str, Path]
) -> None:
    run = tmp_path / "run"
    assert program(run, "--kill-in-step", 5).returncode == -signal.SIGKILL
    ended = program(run, "--fresh")
    assert (ended.returncode, ended.stdout) == (0, unbroken[0]), ended.stderr
    assert named(run, "resume") == []
    assert nothing_is_left(run)


def test_workers_that_start_again_do_at_most_one_step_twice(
    tmp_path: Path, unbroken: tuple[str, Path], distrain: Callable[..., Completed]
) -> None:
    run = tmp_path / "run"
    options = ("--workers", 2, "--max-restarts", 1, PROGRAMS / "snapshots.py", run)
    ended = distrain("launch", *options, "--kill-in-step", 6, "--rank", 1)
    assert (ended.returncode, ended.stdout) == (0, unbroken[0]), ended.stderr
    (resumed,) = named(run, "resume")
    assert resumed["source"] == "memory"
    assert resumed["step"] in (5, 6)
    assert told(run) == told(unbroken[1])
    assert nothing_is_left(run)
