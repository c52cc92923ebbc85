"""How bytes travel between workers. The sums are taken elsewhere, so any of these is exact."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import torch
from torch import distributed

# torch 2.13 gives the exchange a new name, and warns of the old one, which is all that 2.10 has.
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor

Message = tuple[int, torch.Tensor]
"""Another worker's rank, and what is sent to it or received from it: contiguous."""


class Communicator(Protocol):
    """The exchanges that distrain needs. All workers take part in each, in the same order."""

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of workers."""
        ...

    @property
    def local_size(self) -> int:
        """Workers of each host, of consecutive ranks; `world_size` where that is not so."""
        ...

    @property
    def gathers_at_once(self) -> bool:
        """Whether one all-gather takes less time than as many rounds of `exchange` as W has bits.

        Over gloo it does not: on 4 processes 3.1 ms against 0.9 ms.
        """
        ...

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Every worker's `send`, `(...)`, stacked by rank: `(W, ...)`. Shapes must agree.

        The result is `out` if that is given, contiguous and on the same device, else a new tensor.
        """
        ...

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Sends tensors to some workers and fills others with what these have sent.

        All workers call it, also with nothing to send. Several messages between two workers arrive
        in their order; sizes in bytes must agree.
        """
        ...

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Overwrites the tensor with rank 0's."""
        ...

    def another(self, name: str, timeout_s: float | None = None) -> "Communicator":
        """The same workers over channels of their own, so that a thread can use them meanwhile.

        All workers call it. The channels of a name are made once a process, with that time limit,
        or this communicator's.
        """
        ...


class Alone:
    """One worker: nothing travels."""

    rank = 0
    world_size = 1
    local_size = 1
    gathers_at_once = True

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """`send` itself, as `(1, ...)`."""
        return send.unsqueeze(0) if out is None else out.copy_(send.unsqueeze(0))

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """There is nobody to exchange with."""
        assert not sends
        assert not receives

    def broadcast(self, tensor: torch.Tensor) -> None:
        """Rank 0 has it already."""

    def another(self, name: str, timeout_s: float | None = None) -> "Alone":  # noqa: ARG002
        """This one: nothing can get in the way."""
        return self


_channels: dict[str, tuple[distributed.ProcessGroup | None, distributed.ProcessGroup]] = {}
"""By name, the group of all workers that they were made in, and the group."""


class TorchCommunicator:
    """A group of torch.distributed: NCCL on GPUs, gloo on CPUs.

    Over gloo, tensors of a GPU travel through host memory, so that several workers can share one
    device.
    """

    def __init__(
        self,
        local_size: int | None = None,
        group: distributed.ProcessGroup | None = None,
        timeout: timedelta | None = None,
    ) -> None:
        """Uses the group that `world.join` has joined unless another one is given.

        `timeout` is that of the groups that `another` makes; torch's own unless given.
        """
        self._timeout = timeout
        self.rank = distributed.get_rank()
        self.world_size = distributed.get_world_size()
        self.local_size = local_size or self.world_size
        self.gathers_at_once = distributed.get_backend() != "gloo"
        self._through_host = not self.gathers_at_once
        self._group = group

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """One all-gather."""
        local = (send.cpu() if self._through_host else send).contiguous()
        there = out is not None and out.device == local.device
        received = out if there else local.new_empty((self.world_size, *local.shape))
        assert received is not None
        # gloo wants the flat form.
        _all_gather(received.view(-1), local.view(-1), group=self._group)
        if out is not None and not there:
            return out.copy_(received)
        return received.to(send.device)

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Point-to-point messages, all at once; as bytes, which every backend carries."""
        if self._through_host:
            arriving = [(peer, tensor, tensor.cpu()) for peer, tensor in receives]
            works = [
                distributed.irecv(_bytes(host), peer, group=self._group)
                for peer, _, host in arriving
            ]
            works += [
                distributed.isend(_bytes(tensor.cpu()), peer, group=self._group)
                for peer, tensor in sends
            ]
            _wait(works)
            for _, tensor, host in arriving:
                if host is not tensor:
                    tensor.copy_(host)
            return
        kinds = ((distributed.isend, sends), (distributed.irecv, receives))
        operations = [
            distributed.P2POp(kind, _bytes(tensor), peer, self._group)
            for kind, messages in kinds
            for peer, tensor in messages
        ]
        if operations:
            _wait(distributed.batch_isend_irecv(operations))

    def broadcast(self, tensor: torch.Tensor) -> None:
        """One broadcast from rank 0."""
        local = tensor.detach().cpu() if self._through_host else tensor.detach()
        local = local.contiguous()
        distributed.broadcast(local, src=0, group=self._group)
        with torch.no_grad():
            tensor.copy_(local)

    def another(self, name: str, timeout_s: float | None = None) -> "TorchCommunicator":
        """A group of the same workers and backend: each would cost connections at every `fit`."""
        limit = self._timeout if timeout_s is None else timedelta(seconds=timeout_s)
        world, group = _channels.get(name, (None, None))
        if group is None or world is not distributed.group.WORLD:
            group = distributed.new_group(timeout=limit)
            assert isinstance(group, distributed.ProcessGroup)
            _channels[name] = distributed.group.WORLD, group
        return TorchCommunicator(self.local_size, group, limit)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


def _wait(works: Sequence[distributed.Work | None]) -> None:
    for work in works:
        if work is not None:
            work.wait()


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


def gather_bytes(content: bytes, communicator: Communicator, device: torch.device) -> list[bytes]:
    """Every worker's bytes, by rank; they may be of different length."""
    size = torch.tensor([len(content)], dtype=torch.int64, device=device)
    sizes = communicator.all_gather(size).flatten().tolist()
    mine = torch.zeros(max(1, *sizes), dtype=torch.uint8)
    if content:
        mine[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    received = communicator.all_gather(mine.to(device)).cpu().numpy()
    return [row[:length].tobytes() for row, length in zip(received, sizes, strict=True)]


def bytes_to_first(
    content: bytes, source: int, communicator: Communicator, device: torch.device
) -> bytes:
    """On rank 0 the bytes of worker `source`, which is another one; empty on all others."""
    size = torch.tensor([len(content)], dtype=torch.int64, device=device)
    length = int(communicator.all_gather(size)[source].item())
    if not length:
        return b""
    payload = torch.zeros(length, dtype=torch.uint8)
    if communicator.rank == source:
        payload.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    payload = payload.to(device)
    sends = [(0, payload)] if communicator.rank == source else []
    receives = [(source, payload)] if communicator.rank == 0 else []
    communicator.exchange(sends, receives)
    return payload.cpu().numpy().tobytes() if communicator.rank == 0 else b""
