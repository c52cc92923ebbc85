"""Checkpoints: whole or not at all, verified before they are believed, never overwritten.

    step-000001200/
        model.safetensors        one file a group of tensors
        optimizer.safetensors
        return_*.safetensors     of the state that bad numbers lead back to, where they do
        state.json               {"sha256": of the body, "body": {state, files: {name: digests}}}

Where they stand, and what makes one be there at all, is a store's affair (`checkpoint_store`).
Reading takes safetensors and JSON alone, and nothing that the digests don't cover: whoever can
write to the place can't make a run execute anything.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint_store import STATE, CheckpointStore, DamagedCheckpointError
from distrain.coordinator.tensor_file import CHUNK_BYTES, laid_out

SUFFIX = ".safetensors"
FORMAT = 2
MOST_STATE_BYTES = 256 * 2**20
"""A larger state.json is none of ours: it grows by some 100 bytes an epoch."""


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint holds: groups of tensors, and plain values for JSON."""

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any]


def write_checkpoint(
    store: CheckpointStore,
    step: int,
    contents: CheckpointContents,
    may_commit: Callable[[], None] = lambda: None,
) -> int:
    """Writes a checkpoint, unless there is one of this step: a step has one state only.

    `may_commit` is called when all but state.json is written, and raises where it must not be.

    Returns:
        The bytes of its files.

    Raises:
        StorageError: it could not be written; nothing is left of it under its name.
    """
    if store.has(step):
        return sum(store.files(step).values())
    with store.new(step) as new:
        files: dict[str, Any] = {}
        num_bytes = 0
        for group, tensors in contents.tensors.items():
            file = laid_out(tensors)
            digests = new.put(group + SUFFIX, file.num_bytes, file.chunks(tensors))
            files[group + SUFFIX] = {"bytes": file.num_bytes, "sha256": digests}
            num_bytes += file.num_bytes
        body = {"format": FORMAT, "step": step, "files": files, "state": dict(contents.state)}
        encoded = json.dumps({"sha256": _body_digest(body), "body": body}).encode()
        may_commit()
        new.commit(encoded)
        num_bytes += len(encoded)
    return num_bytes


def _digests(content: bytes) -> Iterator[str]:
    view = memoryview(content)
    for start in range(0, max(1, len(content)), CHUNK_BYTES):
        yield hashlib.sha256(view[start : start + CHUNK_BYTES]).hexdigest()


def _body_digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_checkpoint(store: CheckpointStore, step: int) -> CheckpointContents:
    """Reads and verifies a checkpoint.

    Raises:
        DamagedCheckpointError: any byte is not as written, a file is missing, too many, no regular
            file, or the folder is a link.
        StorageError: the store gives no answer.
    """
    with store.reading(step):
        found = store.files(step)
        body = read_body(store, step, found)
        place = store.name_of(step)
        if body["step"] != step:
            raise DamagedCheckpointError(f"{place}/{STATE} is of step {body['step']}, not {step}")
        strange = found.keys() ^ {STATE, *body["files"]}
        if strange:
            name = min(strange)
            what = "does not belong to it" if name in found else "is missing"
            raise DamagedCheckpointError(f"{place}/{name} {what}")
        tensors = {
            name.removesuffix(SUFFIX): _read_tensors(store, step, name, found[name], described)
            for name, described in body["files"].items()
        }
    return CheckpointContents(tensors, body["state"])


def read_body(store: CheckpointStore, step: int, found: Mapping[str, int]) -> dict[str, Any]:
    """What a checkpoint's state.json says, by its own seal; `found` are its files' sizes.

    Raises:
        DamagedCheckpointError: it is missing, or not as it was written.
    """
    path = f"{store.name_of(step)}/{STATE}"
    if STATE not in found:
        raise DamagedCheckpointError(f"{path} is missing")
    if found[STATE] > MOST_STATE_BYTES:
        raise DamagedCheckpointError(f"{path} has {found[STATE]:,} bytes: it is none of ours")
    with store.open(step, STATE) as file:
        text = file.read()
    try:
        content = json.loads(text)
        body, digest = content["body"], content["sha256"]
        right = _body_digest(body) == digest and isinstance(body, dict)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    if not right:
        raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 is not the one that it names")
    if body["format"] != FORMAT:
        raise DamagedCheckpointError(f"{path} has format {body['format']}, this program {FORMAT}")
    return dict(body)


def _read_tensors(
    store: CheckpointStore, step: int, name: str, size: int, described: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    path = f"{store.name_of(step)}/{name}"
    if size != described["bytes"]:
        raise DamagedCheckpointError(f"{path} has {size:,} bytes, not {described['bytes']:,}")
    with store.open(step, name) as file:
        content = file.read()
    if list(_digests(content)) != described["sha256"]:
        raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 is not the recorded one")
    try:
        # Cloned: tensors that lie in the file's bytes are not aligned (rule 16).
        return {name: tensor.clone() for name, tensor in load_safetensors(content).items()}
    except SafetensorError as error:
        raise DamagedCheckpointError(f"{path} is no safetensors file: {error}") from error


@dataclass(frozen=True)
class Newest:
    """The newest good checkpoint, and what was wrong with those after it."""

    step: int
    contents: CheckpointContents
    damaged: list[str]


def newest_checkpoint(store: CheckpointStore) -> Newest | None:
    """The newest checkpoint that verifies; None where there is none at all.

    A damaged one is set aside, and the one before is taken.

    Raises:
        StorageError: there are checkpoints, and all of them are damaged; or no answer comes, which
            says nothing of them, and changes nothing.
    """
    damaged: list[str] = []
    steps = store.steps()
    for step in reversed(steps):
        try:
            return Newest(step, read_checkpoint(store, step), damaged)
        except DamagedCheckpointError as error:
            aside = store.set_aside(step)
            damaged.append(f"{error} (kept as {aside})")
    if not steps:
        return None
    raise StorageError(
        f"no checkpoint in {store.where} is good, so the run can't go on: {'; '.join(damaged)}. "
        "Restore one, or start anew with --fresh, which moves the run aside"
    )
