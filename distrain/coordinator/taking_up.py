"""Which state a run goes on from: the newest one in the hosts' memory, or on the disk."""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint import CheckpointContents, newest_checkpoint
from distrain.coordinator.checkpoint_store import CheckpointStore
from distrain.coordinator.host_memory import Part, SnapshotFolder, read_snapshot
from distrain.coordinator.log_tail import last_step
from distrain.coordinator.run_folder import RunFolder
from distrain.coordinator.run_layout import EVENTS
from distrain.coordinator.snapshot_parts import joined_contents, whole_sets
from distrain.coordinator.stored_checkpoints import refuse_moved
from distrain.parallel.communicator import broadcast_bytes, bytes_to_first, gather_bytes
from distrain.parallel.world import World


@dataclass(frozen=True)
class Found:
    """Where a run goes on.

    Attributes:
        step: 0 for its begin.
        contents: Its state, on rank 0 alone.
        is_from_memory: It was a snapshot: the disk has none of this step.
        damaged: What was wrong with checkpoints after it.
    """

    step: int
    contents: CheckpointContents | None
    is_from_memory: bool
    damaged: tuple[str, ...] = ()


def is_first_of_host(world: World) -> bool:
    """Whether no worker of a lower rank runs on this host; all workers call it."""
    hosts = gather_bytes(socket.gethostname().encode(), world.communicator, world.device)
    return hosts.index(hosts[world.rank]) == world.rank


def newest_state(
    folder: RunFolder | None,
    store: CheckpointStore | None,
    snapshots: SnapshotFolder | None,
    world: World,
) -> Found:
    """The newest state of a run; all workers call it.

    A snapshot that is newer than the run's log is none to go on from: the log would have a gap.

    Args:
        folder: The run's, on rank 0.
        store: The run's checkpoints, on rank 0.
        snapshots: Those of this worker's host, for the first worker there; None on the others.
        world: All workers.

    Raises:
        StorageError: there are checkpoints, none is good or can be had, and no snapshot either.
        ConfigError: the place of the checkpoints is not there, or was another before.
    """
    told = b""
    if folder is not None:
        told = json.dumps([folder.run_id, last_step(folder.path / EVENTS)]).encode()
    told = broadcast_bytes(told, world.communicator, world.device)
    run_id, logged = json.loads(told) if told else ("", 0)
    step, held = _held(snapshots, run_id, logged)
    steps = _from_all(step, world)
    parts = _held_parts(snapshots, run_id, range(max(steps) + 1, logged + 1), world)
    newest = max(steps) if parts is None else parts.step
    found = Found(0, None, is_from_memory=False)
    if folder is not None and store is not None:
        found = _stored(store, newest)
        if not found.step:
            refuse_moved(folder.path, folder.run_id, store)
    decided = torch.tensor([found.step, int(found.is_from_memory)], device=world.device)
    world.communicator.broadcast(decided)
    step, is_from_memory = decided.tolist()
    if not is_from_memory:
        return Found(step, found.contents, is_from_memory=False, damaged=found.damaged)
    if parts is not None:
        contents = _joined(parts, world)
    else:
        contents = _brought(held, steps.index(newest), world)
    return Found(step, contents, is_from_memory=True, damaged=found.damaged)


def _held(
    snapshots: SnapshotFolder | None, run_id: str, most_step: int
) -> tuple[int, CheckpointContents | None]:
    newest = snapshots.newest(run_id, most_step) if snapshots and run_id else None
    contents = None if newest is None else read_snapshot(newest[1])
    return (0, None) if newest is None or contents is None else (newest[0], contents)


@dataclass(frozen=True)
class _HeldParts:
    """All parts of a state.

    Attributes:
        holders: Who has read each of them.
        read: What this worker has.
    """

    step: int
    holders: Mapping[Part, int]
    read: Mapping[Part, CheckpointContents]


def _held_parts(
    snapshots: SnapshotFolder | None, run_id: str, steps: range, world: World
) -> _HeldParts | None:
    """The newest state whose parts are all there, on whichever hosts; all workers call it."""
    paths = snapshots.parts(run_id, steps) if snapshots and run_id else {}
    told = gather_bytes(json.dumps(list(paths)).encode(), world.communicator, world.device)
    for holders in whole_sets([[Part(*fields) for fields in json.loads(own)] for own in told]):
        mine = [part for part, holder in holders.items() if holder == world.rank]
        read = {part: found for part in mine if (found := read_snapshot(paths[part])) is not None}
        if all(_from_all(len(read) == len(mine), world)):
            return _HeldParts(next(iter(holders)).step, holders, read)
    return None


def _joined(parts: _HeldParts, world: World) -> CheckpointContents | None:
    """The state that they make, on rank 0; all workers call it."""
    brought = [
        _brought(parts.read.get(part), holder, world) for part, holder in parts.holders.items()
    ]
    return joined_contents([part for part in brought if part]) if world.rank == 0 else None


def _from_all(number: int, world: World) -> list[int]:
    mine = torch.tensor([number], dtype=torch.int64, device=world.device)
    return [int(one) for one in world.communicator.all_gather(mine).flatten()]


def _stored(store: CheckpointStore, in_memory: int) -> Found:
    """What rank 0 finds of checkpoints, where that is not older than what is in memory."""
    try:
        store.check()
        if in_memory > max(store.steps(), default=0):
            return Found(in_memory, None, is_from_memory=True)
        newest = newest_checkpoint(store)
    except StorageError as error:
        if not in_memory:
            raise
        return Found(in_memory, None, is_from_memory=True, damaged=(str(error),))
    if newest is None:
        return Found(0, None, is_from_memory=False)
    damaged = tuple(newest.damaged)
    if in_memory > newest.step:
        return Found(in_memory, None, is_from_memory=True, damaged=damaged)
    return Found(newest.step, newest.contents, is_from_memory=False, damaged=damaged)


def _brought(
    held: CheckpointContents | None, source: int, world: World
) -> CheckpointContents | None:
    """The state that one worker holds, on rank 0; all workers call it."""
    if source == 0:
        return held if world.rank == 0 else None
    mine = world.rank == source
    assert held is not None or not mine

    def brought(content: bytes) -> bytes:
        return bytes_to_first(content, source, world.communicator, world.device)

    groups = sorted(held.tensors) if held and mine else []
    head = json.dumps([groups, dict(held.state) if held else {}]).encode() if mine else b""
    told = brought(head)
    num_groups = _from_all(len(groups), world)[source]
    blobs = [
        brought(save_safetensors(dict(held.tensors[groups[n]])) if held and mine else b"")
        for n in range(num_groups)
    ]
    if world.rank != 0:
        return None
    names, state = json.loads(told)
    tensors = {
        name: {key: tensor.clone() for key, tensor in load_safetensors(blob).items()}
        for name, blob in zip(names, blobs, strict=True)
    }
    return CheckpointContents(tensors, state)
