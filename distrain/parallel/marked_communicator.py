"""Exchanges that a worker is known to be in while they last."""

from collections.abc import Sequence

import torch

from distrain.coordinator.phases import PhaseClock
from distrain.parallel.communicator import Communicator, Message


class MarkedCommunicator:
    """Another communicator, whose exchanges are marked on a worker's clock."""

    def __init__(self, inner: Communicator, phases: PhaseClock) -> None:
        """`inner` does the work."""
        self._inner, self._phases = inner, phases

    @property
    def rank(self) -> int:
        """This worker's number."""
        return self._inner.rank

    @property
    def world_size(self) -> int:
        """The number of workers."""
        return self._inner.world_size

    @property
    def local_size(self) -> int:
        """Workers of each host."""
        return self._inner.local_size

    @property
    def gathers_at_once(self) -> bool:
        """Whether an all-gather is quicker than rounds."""
        return self._inner.gathers_at_once

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """As the other's."""
        before = self._phases.begin_exchange()
        try:
            return self._inner.all_gather(send, out)
        finally:
            self._phases.end_exchange(before)

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """As the other's."""
        before = self._phases.begin_exchange()
        try:
            self._inner.exchange(sends, receives)
        finally:
            self._phases.end_exchange(before)

    def broadcast(self, tensor: torch.Tensor) -> None:
        """As the other's."""
        before = self._phases.begin_exchange()
        try:
            self._inner.broadcast(tensor)
        finally:
            self._phases.end_exchange(before)

    def another(self, name: str, timeout_s: float | None = None) -> "MarkedCommunicator":
        """As the other's, marked alike: what a thread exchanges is none of the run's phases."""
        return MarkedCommunicator(self._inner.another(name, timeout_s), self._phases)
