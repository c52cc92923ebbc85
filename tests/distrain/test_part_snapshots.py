"""Parts of a sharded run in memory: of one step everywhere, and joined to what a checkpoint has.

What deaths do to them is in tests/faults/test_sharded_snapshots.py.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distrain.bad_numbers import BadNumbers
from distrain.coordinator import part_snapshots
from distrain.coordinator.checkpoint import CheckpointContents, write_checkpoint
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.host_memory import NoRoomError, Part, SnapshotFolder
from distrain.coordinator.part_snapshots import PartSnapshots
from distrain.coordinator.return_point import ReturnPoints
from distrain.coordinator.run_folder import RunFolder
from distrain.coordinator.run_state import RunState
from distrain.coordinator.snapshot import Slot, read_contents, slot_bytes
from distrain.coordinator.snapshot_parts import joined_contents, whole_sets
from distrain.coordinator.state_contents import StateContents
from distrain.coordinator.taking_up import Found, newest_state
from distrain.learn.averaging import AveragedWeights, ExponentialAverage
from distrain.parallel.gradients import FlatGradients, gradient_parts
from distrain.parallel.sharding import Sharded
from distrain.parallel.transport import SharedTransport
from distrain.parallel.world import World
from distrain.step import TrainingStep
from tests.distrain.test_snapshots import assert_same, some_contents
from tests.thread_workers import ThreadCommunicator, ThreadGroup, on_threads, outcomes

PARTS = st.lists(
    st.builds(Part, st.sampled_from("ab"), st.integers(1, 4), st.integers(0, 2), st.just(3))
)


@given(held=st.lists(PARTS, min_size=1, max_size=3))
def test_sets_are_whole_and_the_newest_comes_first(held: list[list[Part]]) -> None:
    everything = {part for parts in held for part in parts}
    found = whole_sets(held)
    for parts in found:
        assert [part.rank for part in parts] == [0, 1, 2]
        assert len({part[:2] for part in parts}) == 1
        assert all(part in held[holder] for part, holder in parts.items())
    steps = [next(iter(parts)).step for parts in found]
    assert steps == sorted(steps, reverse=True)
    wanted = [
        (start, step)
        for start in "ab"
        for step in range(1, 5)
        if all(Part(start, step, rank, 3) in everything for rank in range(3))
    ]
    assert sorted(next(iter(parts))[:2] for parts in found) == wanted


class Net(nn.Module):
    """One parameter of no dimension, one across the cuts between workers, one channels last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.wide, self.unused = nn.Parameter(torch.randn(150, 120)), nn.Parameter(torch.randn(7))
        self.kernel = nn.Parameter(torch.randn(32, 16, 3, 3).to(memory_format=torch.channels_last))


def moved(gradients: FlatGradients, ownership: Sharded, optimizer: Any, seed: int) -> None:
    flat = torch.randn(gradients.num_floats, generator=torch.Generator().manual_seed(seed))
    ownership.assign(flat, [1, 1, 0, 1])
    optimizer.step()
    ownership.share_weights()


@pytest.mark.parametrize("goes_back", [True, False])
def test_parts_are_joined_to_what_a_checkpoint_holds(goes_back: bool) -> None:
    """Through memory, of a state with an average, the best weights and one to go back to."""
    best = {"scale": torch.tensor(0.25)}
    before = RunState(step=4)
    now = RunState(step=5)

    def work(communicator: ThreadCommunicator) -> tuple[CheckpointContents, CheckpointContents]:
        net = Net()
        gradients = FlatGradients(net)
        optimizer = torch.optim.NAdam(net.parameters())
        cuts = gradient_parts(gradients.num_floats, 0, 3 * 4096)
        ownership = Sharded(gradients, optimizer, SharedTransport(communicator), cuts)
        average = AveragedWeights(net, ExponentialAverage(0.9))
        step = SimpleNamespace(average=average, update=SimpleNamespace(ownership=ownership))
        rule = BadNumbers(non_finite="go_back", every_steps=4) if goes_back else BadNumbers()
        back_to = ReturnPoints(rule, net, cast("TrainingStep", step))
        kept = StateContents(ownership, average, back_to)
        moved(gradients, ownership, optimizer, 1)
        average.update(4)
        back_to.keep(before, {}, epoch=1)
        moved(gradients, ownership, optimizer, 2)
        average.update(5)
        model = net.state_dict()
        whole = kept.whole(now, best, model, kept.optimizer(now, best, is_needed=True))
        part = kept.part(now, best, model, has_rest=communicator.rank == 0)
        memory = bytearray(slot_bytes(part))
        Slot(cast("Any", memory)).fill(now.step, part)
        copied = read_contents(bytes(memory))
        assert copied is not None
        return whole, copied

    for size in (2, 3):
        found = on_threads(ThreadGroup(size), work)
        wholes, parts = zip(*found, strict=True)
        sizes = [sum(t.nbytes for t in part.tensors["optimizer"].values()) for part in parts]
        assert max(sizes) < 0.8 * sum(sizes), "each has a part"
        assert [part for part in parts if "model" in part.tensors] == [parts[0]]
        joined = joined_contents(parts[::-1])
        state = json.loads(json.dumps(wholes[0].state))  # which has no tuples
        assert_same(joined, CheckpointContents(wholes[0].tensors, state))
        assert joined.tensors.keys() == wholes[0].tensors.keys()
        assert len(joined.tensors["optimizer"]) == 3 * 4  # two vectors and two numbers each
        assert ("return_optimizer" in joined.tensors) == goes_back
        with pytest.raises(ValueError, match="for a shape of"):
            joined_contents(parts[:-1])


def copies(folder: SnapshotFolder, start: str, rank: int, num_parts: int, *steps: int) -> None:
    """What a worker of so many has left after these steps: an optimizer's state `n`, cut in two."""
    for number, step in enumerate(steps):
        pieces = torch.arange(6.0).add(step).tensor_split(num_parts)
        at = sum(len(piece) for piece in pieces[:rank])
        optimizer = {f"0.n@{at}": pieces[rank]}
        values: dict[str, Any] = {"optimizer": {"0.t": step}, "return_point": None}
        tensors: dict[str, Mapping[str, torch.Tensor]] = {"optimizer": optimizer}
        if rank == 0:
            rest = some_contents(step)
            values = {**rest.state, **values, "layouts": {"0": [[2, 3], [1, 2]]}}
            tensors = {**rest.tensors, **tensors}
        part = CheckpointContents(tensors, values)
        folder.begin(RUN_ID, start)
        name = f"part-{rank}-of-{num_parts}-slot"
        memory = folder.allocate(number, slot_bytes(part), name=name)
        Slot(memory).fill(step, part)


RUN_ID = "7a"


@dataclass(frozen=True)
class Left:
    """A worker of an earlier start, by its rank, and the steps of its copies."""

    rank: int
    steps: tuple[int, ...]
    start: str = "1f"
    num_parts: int = 2


# By host what is left there; the disk has step 4.
@pytest.mark.parametrize(
    ("left", "step", "from_memory"),
    [
        ([[Left(0, (7, 8)), Left(1, (7, 8))], []], 8, True),
        ([[Left(0, (7, 8))], [], [Left(1, (6, 7))]], 7, True),  # a death between two copies
        ([[], [Left(1, (8, 9)), Left(0, (9, 10))]], 9, True),  # 10 is beyond the log
        ([[Left(0, (7, 8))], []], 4, False),  # the other one's host is gone
        ([[Left(1, (7, 8))], [Left(1, (7, 8))]], 4, False),
        ([[Left(0, (8,))], [Left(1, (8,), start="2e")]], 4, False),
        ([[Left(0, (8,), num_parts=3)], [Left(1, (8,))]], 4, False),
        ([[Left(0, (2, 3)), Left(1, (2, 3))]], 4, False),  # the disk's is newer
        ([[Left(0, (5, 6)), Left(1, (5, 6)), Left(0, (8,), start="2e")]], 6, True),
    ],
)
def test_the_newest_step_counts_that_all_parts_are_there_of(
    tmp_path: Path,
    logged_run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    left: list[list[Left]],
    step: int,
    from_memory: bool,
) -> None:
    monkeypatch.setattr(RunFolder, "run_id", RUN_ID)
    store = FolderStore(logged_run.path / "checkpoints")
    write_checkpoint(store, 4, some_contents(4))
    hosts = []
    for number, own in enumerate(left):
        (tmp_path / str(number)).mkdir()
        folder = SnapshotFolder(Path("runs/x"), root=tmp_path / str(number))
        for one in own:
            copies(folder, one.start, one.rank, one.num_parts, *one.steps)
        hosts.append(folder)

    def work(world: World) -> Found:
        folder, kept = (logged_run, store) if world.rank == 0 else (None, None)
        return newest_state(folder, kept, hosts[world.rank], world)

    for found in outcomes(len(hosts), work):
        assert isinstance(found, Found)
        assert (found.step, found.is_from_memory) == (step, from_memory)
    first = outcomes(len(hosts), work)[0]
    assert isinstance(first, Found)
    assert first.contents is not None
    if from_memory:
        state = torch.arange(6.0).add(step).view(3, 2).t()
        assert torch.equal(first.contents.tensors["optimizer"]["0.n"], state)
        assert first.contents.state["optimizer"] == {"0.t": step}
        assert "layouts" not in first.contents.state
        weights = some_contents(step).tensors["model"]
        assert torch.equal(first.contents.tensors["model"]["w"], weights["w"])
    else:
        assert_same(first.contents, some_contents(step))


def test_a_slot_that_a_death_has_left_without_length_is_passed_over(tmp_path: Path) -> None:
    folder = SnapshotFolder(Path("runs/x"), root=tmp_path)
    copies(folder, "1f", 0, 1, 3)
    for name in ("slot-0", "part-0-of-1-slot-1", "part-of-slot"):
        (folder.path / "start-1f" / name).touch()
    assert folder.newest(RUN_ID, 9) is None
    assert list(folder.parts(RUN_ID, range(1, 9))) == [Part("1f", 3, 0, 1)]


class Workers:
    """The snapshots of a run's workers on one host, and what they say in each step."""

    def __init__(self, root: Path, size: int, every_steps: int | None) -> None:
        group = ThreadGroup(size)
        self.said: list[str] = []
        self.folder = SnapshotFolder(Path("runs/x"), root=root)
        self.all = []
        for rank in range(size):
            world = World(ThreadCommunicator(group, rank), torch.device("cpu"))
            own = PartSnapshots(world, every_steps, lambda _, text: self.said.append(text))
            own.begin(SnapshotFolder(Path("runs/x"), root=root), RUN_ID, "1f", is_first=rank == 0)
            self.all.append(own)

    def step(self, number: int, copying: Sequence[int] | None = None) -> list[bool]:
        """A step, after which some copy, all as a rule; for which of them a copy was due."""
        words = [own.word(number) for own in self.all]
        for own in self.all:
            own.told(words)
        due = [own.is_due for own in self.all]
        for rank in range(len(self.all)) if copying is None else copying:
            if due[rank]:
                self.all[rank].take(number, some_contents(number))
        return due

    def steps(self) -> list[list[int]]:
        """By rank, those that there are copies of."""
        parts = self.folder.parts(RUN_ID, range(1, 10**9))
        return [
            sorted(part.step for part in parts if part.rank == rank)
            for rank in range(len(self.all))
        ]


def test_all_copy_the_same_steps_and_a_death_between_copies_leaves_a_whole_state(
    tmp_path: Path,
) -> None:
    workers = Workers(tmp_path, 3, every_steps=2)
    assert [workers.step(number) for number in range(1, 6)] == [
        [number % 2 == 0] * 3 for number in range(1, 6)
    ]
    assert workers.steps() == [[2, 4]] * 3
    workers.step(6, copying=[1])
    assert workers.steps() == [[2, 4], [4, 6], [2, 4]]


def test_memory_for_large_parts_is_got_while_the_next_steps_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_snapshots, "PREPARED_AT_ONCE_BYTES", 0)
    workers = Workers(tmp_path, 2, every_steps=1)
    assert workers.step(1) == [True, True]
    assert workers.steps() == [[], []]
    number, end = 2, time.monotonic() + 20.0
    while not all(workers.step(number)):
        assert time.monotonic() < end
        time.sleep(0.001)  # the steps' threads leave the one that gets memory its turn
        number += 1
    assert workers.steps() == [[number], [number]]


def test_copies_of_an_earlier_start_go_when_all_have_one_of_this(tmp_path: Path) -> None:
    before = SnapshotFolder(Path("runs/x"), root=tmp_path)
    workers = Workers(tmp_path, 2, every_steps=1)
    copies(before, "0a", 0, 1, 5)
    workers.step(6, copying=[0])
    workers.step(7, copying=[0])
    assert Part("0a", 5, 0, 1) in before.parts(RUN_ID, range(9))
    workers.step(8)
    workers.step(9)
    assert Part("0a", 5, 0, 1) not in before.parts(RUN_ID, range(9))
    for own in workers.all:
        own.forget()
    assert workers.steps() == [[], []]


def test_where_one_has_no_room_none_copies_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = SnapshotFolder.allocate

    def full(self: SnapshotFolder, number: int, num_bytes: int, **more: Any) -> Any:
        if more["name"].startswith("part-1"):
            raise NoRoomError("/dev/shm has no room")
        return allocate(self, number, num_bytes, **more)

    monkeypatch.setattr(SnapshotFolder, "allocate", full)
    workers = Workers(tmp_path, 2, every_steps=1)
    assert workers.step(1) == [True, True]
    assert workers.step(2) == [False, False]
    assert workers.step(3) == [False, False]
    text = "no snapshots in memory for a restart: no room on rank 1"
    assert workers.said == [f"{text}: its memory is short", f"{text}: /dev/shm has no room"]
    assert workers.steps() == [[1], []]
