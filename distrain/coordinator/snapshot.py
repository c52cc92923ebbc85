"""Snapshots: a run's state copied into host memory, where the loop leaves it to others.

    | magic, where the state lies, its SHA-256 | model.safetensors | optimizer.safetensors | ...
    | state: JSON |

The files lie as they will on the disk. The magic is taken away before a copy begins and comes back
after it has ended: a slot that a death has cut off in between is known as such.
"""

import hashlib
import json
import mmap
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.tensor_file import TensorFile, laid_out

HEAD_BYTES = 4096
STATE_ROOM_BYTES = 2**16
"""Kept free behind a state beside its own length: it grows by some 100 bytes an epoch."""

_MAGIC = b"distrain"
_HEAD = struct.Struct("<8sQQ32s")
_ALIGNED = 64

Shapes = Mapping[str, tuple[tuple[str, torch.dtype, torch.Size], ...]]


class Slot:
    """A piece of host memory that holds the state after one step at a time.

    Attributes:
        step: Of the state that it holds; None while it holds none.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        """Takes the memory as it is: its pages should be there already."""
        self.step: int | None = None
        self._memory = memory
        self._content = torch.frombuffer(memory, dtype=torch.uint8)
        self._shapes: Shapes = {}
        self._groups: dict[str, dict[str, torch.Tensor]] = {}
        self._files: dict[str, tuple[int, int]] = {}
        self._end = HEAD_BYTES

    @property
    def num_bytes(self) -> int:
        """Of the memory."""
        return len(self._content)

    def fill(self, step: int, contents: CheckpointContents) -> CheckpointContents | None:
        """Copies a run's state; what it gives back lies here until the next time.

        None where the memory is too small for it; the slot is empty then.
        """
        self.clear()
        if (shapes := shapes_of(contents.tensors)) != self._shapes and not self._lay_out(
            shapes, contents.tensors
        ):
            return None
        for group, tensors in contents.tensors.items():
            copy_group(tensors, self._groups[group])
        body = {"step": step, "files": self._files, "state": dict(contents.state)}
        text = json.dumps(body).encode()
        if self._end + len(text) > self.num_bytes:
            return None
        self._memory[self._end : self._end + len(text)] = text
        place = self._end, len(text), hashlib.sha256(text).digest()
        # The magic last: the bytes before it are in their places by then.
        head = _HEAD.pack(_MAGIC, *place)
        self._memory[len(_MAGIC) : len(head)] = head[len(_MAGIC) :]
        self._memory[: len(_MAGIC)] = _MAGIC
        self.step = step
        return CheckpointContents(self._groups, contents.state)

    def clear(self) -> None:
        """Empties the slot."""
        self.step = None
        self._memory[: len(_MAGIC)] = bytes(len(_MAGIC))

    def _lay_out(self, shapes: Shapes, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> bool:
        layouts = {group: laid_out(named) for group, named in tensors.items()}
        if self.num_bytes < room_for(layouts):
            return False
        self._shapes = {}
        self._groups, self._files, self._end = {}, {}, HEAD_BYTES
        for group, file in layouts.items():
            region = self._content[self._end : self._end + file.num_bytes]
            region[: len(file.header)] = torch.frombuffer(bytearray(file.header), dtype=torch.uint8)
            self._groups[group] = file.views(region)
            self._files[group] = self._end, file.num_bytes
            self._end = _aligned(self._end + file.num_bytes)
        self._shapes = shapes
        return True


def room_for(files: Mapping[str, TensorFile]) -> int:
    """Bytes that these files take in a slot, without the state."""
    return HEAD_BYTES + sum(_aligned(file.num_bytes) for file in files.values())


def slot_bytes(contents: CheckpointContents) -> int:
    """Bytes of a slot for contents of this kind; the state may grow to twice its length."""
    files = {group: laid_out(named) for group, named in contents.tensors.items()}
    return room_for(files) + 2 * len(json.dumps(dict(contents.state))) + STATE_ROOM_BYTES


def shapes_of(groups: Mapping[str, Mapping[str, torch.Tensor]]) -> Shapes:
    """All that a layout depends on."""
    return {
        group: tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
        for group, tensors in groups.items()
    }


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNED) * _ALIGNED


@torch.no_grad()
def copy_group(tensors: Mapping[str, torch.Tensor], to: Mapping[str, torch.Tensor]) -> None:
    """Copies tensors, from any device, to those of the same names on the host."""
    sources = [tensor.detach() for tensor in tensors.values()]
    if not sources:
        return
    torch._foreach_copy_([to[name] for name in tensors], sources, non_blocking=True)
    if any(source.is_cuda for source in sources):
        torch.cuda.current_stream().synchronize()


def read_state(memory: mmap.mmap | bytes) -> dict[str, Any] | None:
    """What a slot's memory says it holds; None where it was cut off in a copy, or never whole."""
    if len(memory) < HEAD_BYTES:
        return None
    magic, start, length, digest = _HEAD.unpack(memory[: _HEAD.size])
    text = memory[start : start + length]
    if magic != _MAGIC or hashlib.sha256(text).digest() != digest:
        return None
    return dict(json.loads(text))


def read_contents(memory: mmap.mmap | bytes) -> CheckpointContents | None:
    """The state that a slot's memory holds, copied out of it; None as `read_state`."""
    body = read_state(memory)
    if body is None:
        return None
    try:
        tensors = {
            group: _read_tensors(memory[start : start + size])
            for group, (start, size) in body["files"].items()
        }
    except SafetensorError:
        return None
    if read_state(memory) != body:  # somebody still fills it
        return None
    return CheckpointContents(tensors, body["state"])


def _read_tensors(content: bytes) -> dict[str, torch.Tensor]:
    # Cloned: tensors that lie in these bytes are not aligned (rule 16).
    return {name: tensor.clone() for name, tensor in load_safetensors(content).items()}
