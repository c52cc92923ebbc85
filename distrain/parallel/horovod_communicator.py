"""Horovod as a way to travel: the exchanges of `Communicator` over `horovod.torch` 0.28.

Horovod matches the workers' exchanges by name: a thread of its own agrees with the others, in turns
of about a millisecond, on what all have handed in under one name, and exchanges that
(https://horovod.readthedocs.io/en/v0.28.1/concepts_include.html). It may pack several into one
buffer, "tensor fusion", which moves bytes and changes none. All-gather, all-to-all and broadcast
move bytes as well, so they take any dtype; the one sum has two terms, and a + b is b + a. So the
bits are those of any other communicator (rule 5).

Importing this needs Horovod: `world.join` does it, and says how to get it.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError

from distrain.errors import LostPeerError

SAME_NAMES = 16
"""How many exchanges of one kind and size may be under way at once."""


class HorovodExchange:
    """An exchange that is under way, or done."""

    def __init__(self, handle: int | None, receive: Callable[[Any], None]) -> None:
        """`receive` takes what Horovod has made of it; without a handle there is nothing to do."""
        self._handle, self._receive = handle, receive

    def wait(self) -> None:
        """Blocks until it is done; a second call does nothing.

        Raises:
            LostPeerError: another worker has ended, or can't be reached.
        """
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        receive, self._receive = self._receive, _drop  # lets go of the tensors
        try:
            made = hvd.synchronize(handle)
        except HorovodInternalError as error:
            raise _lost(error) from error
        receive(made)


class HorovodCommunicator:
    """All workers that Horovod has started, through host memory."""

    # Names are the process's own, however many communicators it makes.
    _started: ClassVar[dict[tuple[str, int, torch.dtype], int]] = {}
    _newest: ClassVar[dict[str, HorovodExchange]] = {}

    def __init__(self) -> None:
        """Uses what `world.join` has joined."""
        self.rank: int = hvd.rank()
        self.world_size: int = hvd.size()

    def start_all_gather(self, send: torch.Tensor, out: torch.Tensor) -> HorovodExchange:
        """Every worker's `send`, `(...)`, into `out`, `(W, ...)`; both contiguous."""
        words = _words(send, send.numel())

        def begin(name: str) -> int:
            return int(hvd.allgather_async(words, name=name))

        def receive(made: torch.Tensor) -> None:
            _flat_bytes(out).copy_(_flat_bytes(made))

        return self._start("all_gather", words, begin, receive)

    def start_all_to_all(self, send: torch.Tensor, out: torch.Tensor) -> HorovodExchange:
        """Row i of `send` to rank i; row r of `out` from rank r; both `(W, n)`, contiguous."""
        words = _words(send, send.numel() // self.world_size)

        def begin(name: str) -> int:
            return int(hvd.alltoall_async(words, name=name))

        def receive(made: tuple[torch.Tensor, torch.Tensor] | torch.Tensor) -> None:
            received = made if isinstance(made, torch.Tensor) else made[0]
            _flat_bytes(out).copy_(_flat_bytes(received))

        return self._start("all_to_all", words, begin, receive)

    def start_sum_of_two(self, tensor: torch.Tensor) -> HorovodExchange:
        """`tensor`, float32 and contiguous, becomes the sum of both workers' own, in place."""
        assert self.world_size == 2, "the order of a sum of more terms is not ours to choose"
        local = tensor.detach().cpu()

        def begin(name: str) -> int:
            return int(hvd.allreduce_async_(local, name=name, op=hvd.Sum))

        def receive(made: torch.Tensor) -> None:
            if made.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(made)

        return self._start("sum", local, begin, receive)

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """One all-gather."""
        received = send.new_empty((self.world_size, *send.shape)) if out is None else out
        self.start_all_gather(send.contiguous(), received).wait()
        return received

    def broadcast(self, tensor: torch.Tensor) -> None:
        """One broadcast from rank 0."""
        local = tensor.detach().cpu().contiguous()
        words = _words(local, local.numel())

        def begin(name: str) -> int:
            return int(hvd.broadcast_async_(words, root_rank=0, name=name))

        def receive(made: torch.Tensor) -> None:
            with torch.no_grad():
                tensor.copy_(made.view(local.dtype).view_as(local))

        self._start("broadcast", words, begin, receive).wait()

    def _start(
        self,
        kind: str,
        words: torch.Tensor,
        begin: Callable[[str], int],
        receive: Callable[[Any], None],
    ) -> HorovodExchange:
        """Hands an exchange in under a name that all workers give it.

        Names come round again: what has been agreed on once under a name need not be agreed on
        anew, as Horovod remembers 1,024 of them. One that is still under way is waited for. All of
        this follows from the order in which exchanges are started alone, the same on all workers.
        """
        if not words.numel():
            return HorovodExchange(None, receive)
        key = (kind, words.numel(), words.dtype)
        number = self._started.get(key, 0)
        self._started[key] = number + 1
        name = f"{kind} {words.numel()} {words.dtype} {number % SAME_NAMES}"
        if name in self._newest:
            self._newest[name].wait()
        try:
            exchange = HorovodExchange(begin(name), receive)
        except HorovodInternalError as error:
            raise _lost(error) from error
        self._newest[name] = exchange
        return exchange


def _drop(_made: object) -> None:
    """What has been received already."""


def _words(tensor: torch.Tensor, multiple: int) -> torch.Tensor:
    """A contiguous tensor's bytes on the host, as a vector of the longest words that fit.

    `multiple` elements must be whole words. Horovod counts elements in 32 bits
    (horovod/common/ops/gloo_operations.cc); of words of 8 bytes that is 16 GiB at once. The choice
    rests on dtype and shape, so it is the same on all workers.
    """
    flat = tensor.detach().cpu().reshape(-1)
    if multiple * flat.element_size() % 8:
        return flat.view(torch.uint8)
    if flat.storage_offset() * flat.element_size() % 8:
        flat = flat.clone()
    return flat.view(torch.int64)


def _flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(-1).view(torch.uint8)


def _lost(error: Exception) -> LostPeerError:
    """All that can fail: under a name that holds kind, size and dtype, workers can't disagree."""
    return LostPeerError(f"Horovod: {error}")
