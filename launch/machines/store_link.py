"""Calls of a store over the network with a time limit: torch's own wait until TCP gives up."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from launch.machines.node_range import STORE_THREAD

T = TypeVar("T")

_Call = tuple[Callable[[], Any], Future[Any]]

ANSWER_S = 10.0
"""So long a store has to answer, or it is lost."""


class StoreLink:
    """A store's calls, one after the other, in a thread that may be left waiting."""

    def __init__(self, store: Store, answer_s: float = ANSWER_S) -> None:
        """`store` is that of the machine that hosts the rendezvous."""
        self._store, self._answer_s = store, answer_s
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self.is_lost = False
        threading.Thread(target=self._serve, name=STORE_THREAD, daemon=True).start()

    def call(self, operation: Callable[[Store], T]) -> T:
        """What the store answers.

        Raises:
            RendezvousConnectionError: it is lost; from then on always.
        """
        if self.is_lost:
            raise RendezvousConnectionError("the store does not answer any more")
        answer: Future[T] = Future()
        self._calls.put((lambda: operation(self._store), answer))
        try:
            return answer.result(self._answer_s)
        except (RuntimeError, ValueError, OSError, TimeoutError) as error:
            self.is_lost = True
            self._calls.put(None)
            raise RendezvousConnectionError(f"the store does not answer: {error}") from error

    def _serve(self) -> None:
        for operation, answer in iter(self._calls.get, None):
            _answer(operation, answer)


def within(limit_s: float, operation: Callable[[], T]) -> T:
    """What an operation gives.

    Raises:
        TimeoutError: not within so many seconds; it is left to itself.
    """
    answer: Future[T] = Future()
    threading.Thread(
        target=_answer, args=(operation, answer), name=STORE_THREAD, daemon=True
    ).start()
    return answer.result(limit_s)


def _answer(operation: Callable[[], T], answer: Future[T]) -> None:
    try:
        answer.set_result(operation())
    except BaseException as error:  # noqa: BLE001 - raised by the caller
        answer.set_exception(error)
