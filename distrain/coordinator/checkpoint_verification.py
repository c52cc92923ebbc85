"""All that is wrong with a checkpoint, file by file; nothing is moved or changed."""

import hashlib
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from distrain.coordinator.checkpoint import (
    STATE,
    DamagedCheckpointError,
    read_body,
)
from distrain.coordinator.run_layout import folder_name
from distrain.coordinator.tensor_file import CHUNK_BYTES


class RemovedCheckpointError(Exception):
    """The run has removed a checkpoint while it was looked at."""


def damages(root: Path, step: int) -> list[str]:
    """What is not as it was written, each with its file; empty for a good checkpoint.

    It is what `read_checkpoint` refuses, all of it and not the first alone, in little memory.

    Raises:
        RemovedCheckpointError: there is no such checkpoint any more.
    """
    folder = root / folder_name(step)
    try:
        found = list(_damages(folder, step))
    except OSError as error:
        found = [f"cannot be read: {error}"]
    if found and not folder.exists():
        raise RemovedCheckpointError
    return found


def _damages(folder: Path, step: int) -> Iterator[str]:
    if not stat.S_ISDIR(folder.lstat().st_mode):
        yield f"{folder.name} is no folder of its own"
        return
    there = {path.name: path.lstat() for path in folder.iterdir()}
    for name, status in sorted(there.items()):
        if not stat.S_ISREG(status.st_mode):
            yield f"{name} is a link or no file: a checkpoint has none"
            return
    try:
        body = read_body(folder / STATE)
    except DamagedCheckpointError as error:
        yield str(error).removeprefix(f"{folder}/")
        return
    if body["step"] != step:
        yield f"{STATE} is of step {body['step']}, not {step}"
    for name in sorted(there.keys() - {STATE, *body["files"]}):
        yield f"{name} does not belong to it"
    for name, described in sorted(body["files"].items()):
        if name not in there:
            yield f"{name} is missing"
        elif there[name].st_size != described["bytes"]:
            yield f"{name} has {there[name].st_size:,} bytes, not {described['bytes']:,}"
        else:
            yield from _damaged_chunks(folder / name, described)


def _damaged_chunks(path: Path, described: Mapping[str, Any]) -> Iterator[str]:
    """The byte ranges of a file whose SHA-256 is not the recorded one."""
    with path.open("rb") as file:
        for number, digest in enumerate(described["sha256"]):
            chunk = file.read(CHUNK_BYTES)
            found = hashlib.sha256(chunk).hexdigest()
            if found != digest:
                start = number * CHUNK_BYTES
                yield (
                    f"{path.name} is damaged within bytes {start:,} to {start + len(chunk) - 1:,}: "
                    f"their SHA-256 begins with {found[:8]}, not {digest[:8]}"
                )


def verified_bytes(root: Path, step: int) -> int:
    """How many bytes a good checkpoint has."""
    folder = root / folder_name(step)
    try:
        return sum(path.stat().st_size for path in folder.iterdir())
    except FileNotFoundError as error:
        raise RemovedCheckpointError from error
