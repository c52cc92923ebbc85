"""All that is wrong with a checkpoint, file by file; nothing is moved or changed."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from distrain.coordinator.checkpoint import read_body
from distrain.coordinator.checkpoint_store import STATE, CheckpointStore, DamagedCheckpointError
from distrain.coordinator.tensor_file import CHUNK_BYTES


class RemovedCheckpointError(Exception):
    """The run has removed a checkpoint while it was looked at."""


def damages(store: CheckpointStore, step: int) -> list[str]:
    """What is not as it was written, each with its file; empty for a good checkpoint.

    It is what `read_checkpoint` refuses, all of it and not the first alone, in little memory.

    Raises:
        RemovedCheckpointError: there is no such checkpoint any more.
        StorageError: the store gives no answer.
    """
    found: list[str] = []
    try:
        with store.reading(step):
            found.extend(_damages(store, step))
    except DamagedCheckpointError as error:
        within = str(error).removeprefix(f"{store.name_of(step)}/")
        found.append(within.removeprefix(f"{store.where}/"))
    if found and not store.has(step):
        raise RemovedCheckpointError
    return found


def _damages(store: CheckpointStore, step: int) -> Iterator[str]:
    there = store.files(step)
    body = read_body(store, step, there)
    if body["step"] != step:
        yield f"{STATE} is of step {body['step']}, not {step}"
    for name in sorted(there.keys() - {STATE, *body["files"]}):
        yield f"{name} does not belong to it"
    for name, described in sorted(body["files"].items()):
        if name not in there:
            yield f"{name} is missing"
        elif there[name] != described["bytes"]:
            yield f"{name} has {there[name]:,} bytes, not {described['bytes']:,}"
        else:
            yield from _damaged_chunks(store, step, name, described)


def _damaged_chunks(
    store: CheckpointStore, step: int, name: str, described: Mapping[str, Any]
) -> Iterator[str]:
    """The byte ranges of a file whose SHA-256 is not the recorded one."""
    with store.open(step, name) as file:
        for number, digest in enumerate(described["sha256"]):
            chunk = file.read(CHUNK_BYTES)
            found = hashlib.sha256(chunk).hexdigest()
            if found != digest:
                start = number * CHUNK_BYTES
                yield (
                    f"{name} is damaged within bytes {start:,} to {start + len(chunk) - 1:,}: "
                    f"their SHA-256 begins with {found[:8]}, not {digest[:8]}"
                )


def verified_bytes(store: CheckpointStore, step: int) -> int:
    """How many bytes a good checkpoint has."""
    try:
        return sum(store.files(step).values())
    except DamagedCheckpointError as error:
        raise RemovedCheckpointError from error
