"""Workers in the threads of one process: what they send is copied, as bytes on a wire would be."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import TypeVar

import torch

from distrain.parallel.communicator import Message
from distrain.parallel.world import World

TIMEOUT_S = 120.0
"""One of them may have to compile what the others wait for, on a busy machine."""
T = TypeVar("T")


class ThreadGroup:
    """What the workers share."""

    def __init__(self, size: int, local_size: int | None = None, *, at_once: bool = True) -> None:
        self.size, self.local_size, self.at_once = size, local_size or size, at_once
        self.barrier = threading.Barrier(size, timeout=TIMEOUT_S)
        self.sent: list[torch.Tensor] = [torch.empty(0)] * size
        self.mail = {(a, b): Queue[torch.Tensor]() for a in range(size) for b in range(size)}
        self.more: dict[str, ThreadGroup] = {}
        self.lock = threading.Lock()

    def another(self, name: str) -> "ThreadGroup":
        with self.lock:
            if name not in self.more:
                self.more[name] = ThreadGroup(self.size, self.local_size, at_once=self.at_once)
            return self.more[name]


class ThreadCommunicator:
    """One worker's end of a group; counts the exchanges and the bytes that it sends."""

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        self._group, self.rank, self.world_size = group, rank, group.size
        self.local_size, self.gathers_at_once = group.local_size, group.at_once
        self.num_exchanges = self.num_bytes = 0

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        self.num_exchanges += 1
        self._group.sent[self.rank] = send.clone()
        self._group.barrier.wait()
        received = torch.stack(self._group.sent)
        self._group.barrier.wait()
        return received if out is None else out.copy_(received)

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        self.num_exchanges += 1
        for peer, tensor in sends:
            assert tensor.is_contiguous()
            self.num_bytes += tensor.nbytes
            self._group.mail[self.rank, peer].put(tensor.clone())
        for peer, tensor in receives:
            arrived = self._group.mail[peer, self.rank].get(timeout=TIMEOUT_S)
            assert arrived.nbytes == tensor.nbytes
            tensor.view(-1).view(torch.uint8).copy_(arrived.view(-1).view(torch.uint8))

    def broadcast(self, tensor: torch.Tensor) -> None:
        self._group.sent[self.rank] = tensor.clone()
        self._group.barrier.wait()
        tensor.copy_(self._group.sent[0])
        self._group.barrier.wait()

    def another(self, name: str, timeout_s: float | None = None) -> "ThreadCommunicator":
        assert timeout_s is None or timeout_s > 0
        return ThreadCommunicator(self._group.another(name), self.rank)


def on_threads(group: ThreadGroup, work: Callable[[ThreadCommunicator], T]) -> list[T]:
    """What each worker's call returns, by rank."""
    with ThreadPoolExecutor(group.size) as pool:
        return list(pool.map(work, [ThreadCommunicator(group, r) for r in range(group.size)]))


def outcomes(size: int, work: Callable[[World], T]) -> list[T | BaseException]:
    """What each worker's call returns or raises, by rank."""

    def caught(communicator: ThreadCommunicator) -> T | BaseException:
        try:
            return work(World(communicator, torch.device("cpu")))
        except threading.BrokenBarrierError:
            raise
        except BaseException as error:  # noqa: BLE001 - it is what the test looks at
            return error

    return on_threads(ThreadGroup(size), caught)
