"""Horovod as a way to travel: the exchanges of `Communicator` over `horovod.torch` 0.28.

Horovod matches the workers' exchanges by name: a thread of its own agrees with the others, in turns
of about a millisecond, on what all have handed in under one name, and exchanges that
(https://horovod.readthedocs.io/en/v0.28.1/concepts_include.html). It may pack several into one
buffer, "tensor fusion", which moves bytes and changes none. Nothing is summed here, so any dtype
travels, and the bits are those of any other communicator (rule 5).

Importing this needs Horovod: `world.join` does it, and says how to get it.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import horovod.torch as hvd
import torch
from horovod.common.exceptions import HorovodInternalError
from horovod.torch.mpi_ops import is_homogeneous

from distrain.errors import LostPeerError
from distrain.parallel.communicator import Message

_EXCHANGES = 60
"""After so many, the names of `exchange` come round again: a multiple of what steps mostly need."""

_WORD_BYTES = 8
"""Horovod counts elements in 32 bits (horovod/common/ops/gloo_operations.cc): words make 16 GiB."""


class HorovodCommunicator:
    """All workers that Horovod has started, through host memory.

    An exchange has the name that its kind and size give it, and no two of one name are under way at
    once. What the workers have agreed on once under a name need not be agreed on anew, as Horovod
    remembers 1,024 of them (HOROVOD_CACHE_CAPACITY): that saves two thirds of the time.
    """

    # Names are the process's own, however many communicators of it there are.
    _numbers: ClassVar[dict[str, int]] = {}

    gathers_at_once = True  # every exchange waits for a turn of Horovod's, so one is best

    def __init__(self, channel: str = "distrain") -> None:
        """Uses what `world.join` has joined; what is named by another channel is kept apart."""
        self.rank: int = hvd.rank()
        self.world_size: int = hvd.size()
        # horovodrun gives each host consecutive ranks; here all must come to one number.
        self.local_size: int = hvd.local_size() if is_homogeneous() else hvd.size()
        self._channel = channel

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """One all-gather."""
        received = send.new_empty((self.world_size, *send.shape)) if out is None else out
        words = _words(send)
        if len(words):
            name = f"{self._channel} all_gather {len(words)} {words.dtype}"
            made = _done(lambda: hvd.allgather_async(words, name=name))
            _bytes(received).copy_(_bytes(made))
        return received

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """One all-to-all of what is sent to each worker, one after the other, in whole words."""
        bound = [[] for _ in range(self.world_size)]  # type: list[list[torch.Tensor]]
        for peer, tensor in sends:
            bound[peer].append(tensor)
        counts = [sum(_num_words(tensor) for tensor in tensors) for tensors in bound]
        words = torch.empty(sum(counts), dtype=torch.int64)
        _copy_along(words, [tensor for tensors in bound for tensor in tensors], arriving=False)
        name = f"{self._channel} exchange {self._next('exchange') % _EXCHANGES}"
        splits = torch.tensor(counts, dtype=torch.int32)
        made, received = _done(lambda: hvd.alltoall_async(words, splits=splits, name=name))
        # Messages of one worker stay in their order.
        arriving = sorted(receives, key=lambda message: message[0])
        expected = [0] * self.world_size
        for peer, tensor in arriving:
            expected[peer] += _num_words(tensor)
        assert received.tolist() == expected, "workers disagree on what is sent"
        _copy_along(made, [tensor for _, tensor in arriving], arriving=True)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """One broadcast from rank 0."""
        local = tensor.detach().cpu().contiguous()
        words = _words(local)
        if len(words):
            name = f"{self._channel} broadcast {len(words)} {words.dtype}"
            made = _done(lambda: hvd.broadcast_async(words, root_rank=0, name=name))
            with torch.no_grad():
                tensor.copy_(made.view(local.dtype).view_as(local))

    def another(
        self,
        name: str,
        timeout_s: float | None = None,  # noqa: ARG002 - Horovod has one for all
    ) -> "HorovodCommunicator":
        """The same workers under names of their own; Horovod may be called from any thread."""
        return HorovodCommunicator(f"{self._channel}.{name}")

    def _next(self, what: str) -> int:
        key = f"{self._channel} {what}"
        number = self._numbers.get(key, 0)
        self._numbers[key] = number + 1
        return number


def _done(begin: Callable[[], int]) -> Any:
    """What an exchange has made.

    Raises:
        LostPeerError: another worker has ended, or can't be reached. Nothing else can fail: under a
            name that holds kind, size and dtype, workers can't disagree.
    """
    try:
        return hvd.synchronize(begin())
    except HorovodInternalError as error:
        raise LostPeerError(
            f"the connection to another worker was lost; did it end early? (Horovod: {error})"
        ) from error


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bytes on the host, as a vector of words if they make whole ones.

    That rests on dtype and shape alone, so it is the same on all workers.
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if flat.nbytes % _WORD_BYTES:
        return flat.view(torch.uint8)
    if flat.storage_offset() * flat.element_size() % _WORD_BYTES:
        flat = flat.clone()
    return flat.view(torch.int64)


def _num_words(tensor: torch.Tensor) -> int:
    return -(-tensor.nbytes // _WORD_BYTES)


def _copy_along(words: torch.Tensor, tensors: Sequence[torch.Tensor], *, arriving: bool) -> None:
    """Copies contiguous tensors to words, one after the other, or these to them."""
    at, block = 0, words.view(torch.uint8)
    for tensor in tensors:
        part, content = block[at : at + tensor.nbytes], _bytes(tensor)
        if arriving:
            content.copy_(part)
        else:
            part.copy_(content)
        at += _num_words(tensor) * _WORD_BYTES


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(-1).view(torch.uint8)
