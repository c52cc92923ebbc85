"""A safetensors file: its layout is told by names, dtypes and shapes alone, its bytes are streamed.

    | bytes of the header, 8 | header: JSON, padded to a multiple of 8 | tensor | tensor | ...

Byte for byte what `safetensors.torch.save` gives (https://github.com/huggingface/safetensors#format),
without that function's copies: tensors are hashed and written from where they lie.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distrain.errors import ConfigError

CHUNK_BYTES = 16 * 2**20
"""Each file is digested in chunks of this size."""

_ALIGNED = 8

# In the library's order: the largest elements first, so that all of them lie aligned.
_CODES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: place for place, dtype in enumerate(_CODES)}


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie in its file, `start` up to `stop`."""

    dtype: torch.dtype
    shape: torch.Size
    start: int
    stop: int


@dataclass(frozen=True)
class TensorFile:
    """How some tensors lie in a file.

    Attributes:
        header: The file's first bytes.
        places: By name, in the order of the file.
        num_bytes: Of all of the file.
    """

    header: bytes
    places: Mapping[str, Place]
    num_bytes: int

    def views(self, content: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tensors that lie in a file's content, `(num_bytes,)` of uint8, aligned to 8."""
        return {
            name: content[place.start : place.stop].view(place.dtype).view(place.shape)
            for name, place in self.places.items()
        }

    def chunks(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[list[memoryview]]:
        """The file's bytes, where they lie, in chunks of `CHUNK_BYTES`; the last one is shorter."""
        return _in_chunks(self._pieces(tensors))

    def _pieces(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview]:
        """The file's bytes; a tensor of a device comes to the host in its turn."""
        yield memoryview(self.header)
        for name in self.places:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            if len(flat):
                yield flat.view(torch.uint8).numpy().data


def laid_out(tensors: Mapping[str, torch.Tensor]) -> TensorFile:
    """The file of these tensors.

    Raises:
        ConfigError: safetensors has no name for a dtype.
    """
    header: dict[str, Any] = {}
    spans: list[tuple[str, int, int]] = []
    at = 0
    for name, tensor in sorted(tensors.items(), key=_order):
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + size],
        }
        spans.append((name, at, at + size))
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    begin = len(text).to_bytes(8, "little") + text
    first = len(begin)
    places = {
        name: Place(tensors[name].dtype, tensors[name].shape, first + start, first + stop)
        for name, start, stop in spans
    }
    return TensorFile(begin, places, first + at)


def _order(item: tuple[str, torch.Tensor]) -> tuple[int, bytes]:
    name, tensor = item
    if tensor.dtype not in _ORDER:
        raise ConfigError(
            f"{name} is of {tensor.dtype}, which a checkpoint can't hold: safetensors has no name "
            "for it"
        )
    return _ORDER[tensor.dtype], name.encode()


def _in_chunks(pieces: Iterator[memoryview]) -> Iterator[list[memoryview]]:
    """The same bytes in chunks of `CHUNK_BYTES`, the last one shorter."""
    chunk: list[memoryview] = []
    room = CHUNK_BYTES
    for piece in pieces:
        rest = piece
        while len(rest) >= room:
            yield [*chunk, rest[:room]]
            chunk, rest, room = [], rest[room:], CHUNK_BYTES
        if len(rest):
            chunk.append(rest)
            room -= len(rest)
    if chunk:
        yield chunk
