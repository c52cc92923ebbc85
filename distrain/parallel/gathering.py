"""Tensors of any shapes from all workers to all, such as a model's outputs over a data set.

Every worker has them on its host in the end; a device holds no more than a piece of each worker's.
"""

import json
from collections.abc import Sequence

import torch

from distrain.numerics import ALIGNMENT
from distrain.parallel.communicator import gather_bytes
from distrain.parallel.world import World

PIECE_BYTES = 2**24
"""What a worker sends in one exchange."""

_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
        *(torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}
"""What may be gathered."""

_Kind = tuple[torch.dtype, list[int]]


def gather_chunks(own: Sequence[torch.Tensor], world: World) -> list[torch.Tensor]:
    """All workers' tensors, rank 0's first, each worker's in their order, on the host.

    Args:
        own: This worker's; any number of them, on any device.
        world: The workers, who all take part.
    """
    own = [tensor.detach().cpu().contiguous() for tensor in own]
    if world.size == 1:
        return own
    kinds = _kinds(own, world)
    longest = max(sum(map(_room, of_rank)) for of_rank in kinds)
    received = torch.empty(world.size, longest, dtype=torch.uint8)
    _lay_out(own, received[world.rank])
    for start in range(0, longest, PIECE_BYTES):
        piece = slice(start, min(start + PIECE_BYTES, longest))
        sent = received[world.rank, piece].to(world.device)
        received[:, piece] = world.communicator.all_gather(sent).cpu()
    return [
        tensor
        for row, of_rank in zip(received, kinds, strict=True)
        for tensor in _views(row, of_rank)
    ]


def _kinds(own: Sequence[torch.Tensor], world: World) -> list[list[_Kind]]:
    """Dtype and shape of every worker's tensors, by rank."""
    described = json.dumps([[str(tensor.dtype), list(tensor.shape)] for tensor in own]).encode()
    tables = gather_bytes(described, world.communicator, world.device)
    return [[(_DTYPES[dtype], shape) for dtype, shape in json.loads(table)] for table in tables]


def _room(kind: _Kind) -> int:
    """Bytes for a tensor, so that the next one is aligned (rule 16)."""
    dtype, shape = kind
    return -(-dtype.itemsize * torch.Size(shape).numel() // ALIGNMENT) * ALIGNMENT


def _views(row: torch.Tensor, kinds: Sequence[_Kind]) -> list[torch.Tensor]:
    found, at = [], 0
    for dtype, shape in kinds:
        num_bytes = dtype.itemsize * torch.Size(shape).numel()
        found.append(row[at : at + num_bytes].view(dtype).view(shape))
        at += _room((dtype, shape))
    return found


def _lay_out(tensors: Sequence[torch.Tensor], row: torch.Tensor) -> None:
    kinds = [(tensor.dtype, list(tensor.shape)) for tensor in tensors]
    for place, tensor in zip(_views(row, kinds), tensors, strict=True):
        place.copy_(tensor)
