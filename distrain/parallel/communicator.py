"""How bytes travel between workers. The sums are taken elsewhere, so any of these is exact."""

from typing import Protocol

import torch
from torch import distributed

# torch 2.13 gives the exchange a new name, and warns of the old one, which is all that 2.10 has.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


class Communicator(Protocol):
    """The exchanges that distrain needs."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of workers."""
        ...

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Every worker's `send`, `(...)`, stacked by rank: `(W, ...)`. Shapes must agree.

        The result is `out` if that is given, contiguous and on the same device, else a new tensor.
        """
        ...

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrites the tensor with rank 0's."""
        ...


class Alone:
    """One worker: nothing travels."""

    rank = 0
    world_size = 1

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """`send` itself, as `(1, ...)`."""
        return send.unsqueeze(0) if out is None else out.copy_(send.unsqueeze(0))

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Rank 0 has it already."""


class TorchCommunicator:
    """torch.distributed's default group: NCCL on GPUs, gloo on CPUs.

    Over gloo, tensors of a GPU travel through host memory, so that several workers can share one
    device.
    """

    def __init__(self) -> None:
        """Uses the group that `world.join` has joined."""
        self.rank = distributed.get_rank()
        self.world_size = distributed.get_world_size()
        self._through_host = distributed.get_backend() == "gloo"

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """One all-gather."""
        local = (send.cpu() if self._through_host else send).contiguous()
        there = out is not None and out.device == local.device
        received = out if there else local.new_empty((self.world_size, *local.shape))
        assert received is not None
        _all_gather(received.view(-1), local.view(-1))  # gloo wants the flat form
        if out is not None and not there:
            return out.copy_(received)
        return received.to(send.device)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """One broadcast from rank 0."""
        local = tensor.detach().cpu() if self._through_host else tensor.detach()
        local = local.contiguous()
        distributed.broadcast(local, src=0)
        with torch.no_grad():
            tensor.copy_(local)


def broadcast_bytes(content: bytes, communicator: Communicator, device: torch.device) -> bytes:
    """Rank 0's bytes, on every worker; what the others pass is not looked at."""
    if communicator.world_size == 1:
        return content
    size = torch.tensor([len(content)], dtype=torch.int64, device=device)
    communicator.broadcast(size)
    payload = torch.zeros(int(size.item()), dtype=torch.uint8, device=device)
    if communicator.rank == 0 and content:
        payload.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    if len(payload):
        communicator.broadcast(payload)
    return payload.cpu().numpy().tobytes()
