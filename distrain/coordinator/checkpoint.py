"""Checkpoints on disk: whole or not at all, verified before they are believed, never overwritten.

    checkpoints/step-000001200/
        model.safetensors        one file a group of tensors
        optimizer.safetensors
        return_*.safetensors     of the state that bad numbers lead back to, where they do
        state.json               {"sha256": of the body, "body": {state, files: {name: digests}}}

A checkpoint is written aside, synced and renamed (`data_pipeline.durable.new_folder`). Reading
takes safetensors and JSON alone, and nothing that the digests don't cover: whoever can write to the
folder can't make a run execute anything.
"""

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from data_pipeline.durable import fsync_file, new_folder
from data_pipeline.errors import StorageError
from distrain.coordinator.run_layout import folder_name, steps_in
from distrain.coordinator.tensor_file import CHUNK_BYTES, laid_out

STATE = "state.json"
SUFFIX = ".safetensors"
FORMAT = 2
MOST_STATE_BYTES = 256 * 2**20
"""A larger state.json is none of ours: it grows by some 100 bytes an epoch."""


class DamagedCheckpointError(Exception):
    """A checkpoint is not as it was written; the message names the file and what is wrong."""


@dataclass(frozen=True)
class CheckpointContents:
    """What a checkpoint holds: groups of tensors, and plain values for JSON."""

    tensors: Mapping[str, Mapping[str, torch.Tensor]]
    state: Mapping[str, Any]


def write_checkpoint(root: Path, step: int, contents: CheckpointContents) -> Path:
    """Writes a checkpoint, unless there is one of this step: a step has one state only.

    Raises:
        StorageError: it could not be written; nothing is left of it under its name.
    """
    folder = root / folder_name(step)
    if folder.exists():
        return folder
    with new_folder(folder) as aside:
        files: dict[str, Any] = {}
        for group, tensors in contents.tensors.items():
            file = laid_out(tensors)
            digests = file.write(aside / (group + SUFFIX), tensors)
            files[group + SUFFIX] = {"bytes": file.num_bytes, "sha256": digests}
        body = {"format": FORMAT, "step": step, "files": files, "state": dict(contents.state)}
        encoded = json.dumps({"sha256": _body_digest(body), "body": body}).encode()
        (aside / STATE).write_bytes(encoded)
        fsync_file(aside / STATE)
    return folder


def _digests(content: bytes) -> Iterator[str]:
    view = memoryview(content)
    for start in range(0, max(1, len(content)), CHUNK_BYTES):
        yield hashlib.sha256(view[start : start + CHUNK_BYTES]).hexdigest()


def _body_digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_checkpoint(root: Path, step: int) -> CheckpointContents:
    """Reads and verifies a checkpoint.

    Raises:
        DamagedCheckpointError: any byte is not as written, a file is missing, too many, no regular
            file, or the folder is a link.
    """
    folder = root / folder_name(step)
    try:
        return _read(folder, step)
    except OSError as error:
        raise DamagedCheckpointError(f"{folder} cannot be read: {error}") from error


def _read(folder: Path, step: int) -> CheckpointContents:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        raise DamagedCheckpointError(f"{folder} is no folder of its own")
    for path in folder.iterdir():
        if not stat.S_ISREG(path.lstat().st_mode):
            raise DamagedCheckpointError(f"{path} is a link or no file: a checkpoint has none")
    body = read_body(folder / STATE)
    if body["step"] != step:
        raise DamagedCheckpointError(f"{folder / STATE} is of step {body['step']}, not {step}")
    found = {path.name for path in folder.iterdir()}
    strange = found ^ {STATE, *body["files"]}
    if strange:
        name = min(strange)
        what = "does not belong to it" if name in found else "is missing"
        raise DamagedCheckpointError(f"{folder / name} {what}")
    tensors = {
        name.removesuffix(SUFFIX): _read_tensors(folder / name, described)
        for name, described in body["files"].items()
    }
    return CheckpointContents(tensors, body["state"])


def read_body(path: Path) -> dict[str, Any]:
    """What a checkpoint's state.json says, by its own seal.

    Raises:
        DamagedCheckpointError: it is missing, or not as it was written.
    """
    if not path.exists():
        raise DamagedCheckpointError(f"{path} is missing")
    if path.stat().st_size > MOST_STATE_BYTES:
        raise DamagedCheckpointError(
            f"{path} has {path.stat().st_size:,} bytes: it is none of ours"
        )
    try:
        content = json.loads(path.read_bytes())
        body, digest = content["body"], content["sha256"]
        right = _body_digest(body) == digest and isinstance(body, dict)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
    if not right:
        raise DamagedCheckpointError(f"{path} is damaged: its SHA-256 is not the one that it names")
    if body["format"] != FORMAT:
        raise DamagedCheckpointError(f"{path} has format {body['format']}, this program {FORMAT}")
    return dict(body)


def _read_tensors(path: Path, described: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    size = path.stat().st_size
    if size != described["bytes"]:
        raise DamagedCheckpointError(f"{path} has {size:,} bytes, not {described['bytes']:,}")
    content = path.read_bytes()
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


def newest_checkpoint(root: Path) -> Newest | None:
    """The newest checkpoint that verifies; None where there is none at all.

    A damaged one is kept aside, as `damaged-step-...`, and the one before is taken.

    Raises:
        StorageError: there are checkpoints, and all of them are damaged.
    """
    damaged: list[str] = []
    steps = steps_in(root)
    for step in reversed(steps):
        try:
            return Newest(step, read_checkpoint(root, step), damaged)
        except DamagedCheckpointError as error:
            aside = _set_aside(root, step)
            damaged.append(f"{error} (kept as {aside.name})")
    if not steps:
        return None
    raise StorageError(
        f"no checkpoint in {root} is good, so the run can't go on: {'; '.join(damaged)}. "
        "Restore one, or start anew with --fresh, which moves the run aside"
    )


def _set_aside(root: Path, step: int) -> Path:
    number = 1
    while (aside := root / f"damaged-{folder_name(step)}-{number}").exists():
        number += 1
    try:
        (root / folder_name(step)).rename(aside)
    except OSError as error:
        raise StorageError(f"cannot move {root / folder_name(step)} aside: {error}") from error
    return aside
