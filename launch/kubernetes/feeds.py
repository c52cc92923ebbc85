"""Streams of a cluster read side by side: a thread each, one queue for what they read."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any

_MOST_WAITING = 10_000
_ENDS_WITHIN_S = 5.0


@dataclass(frozen=True)
class Read:
    """What a stream has given.

    Attributes:
        feed: The stream's name.
        item: What was read; the error by which the stream has failed; None at its end.
    """

    feed: str
    item: Any


class Feeds:
    """Streams that are being read.

    Attributes:
        stopped: Set when nothing more is wanted of any of them.
    """

    def __init__(self) -> None:
        """None yet."""
        self.stopped = threading.Event()
        self._queue: Queue[Read] = Queue(_MOST_WAITING)
        self._threads: dict[str, threading.Thread] = {}

    def start(self, feed: str, items: Iterable[Any]) -> None:
        """Reads one more stream, whose name is none of those before."""
        thread = threading.Thread(target=self._pump, args=(feed, items), name=feed, daemon=True)
        self._threads[feed] = thread
        thread.start()

    def next(self, timeout_s: float | None = None) -> Read | None:
        """What comes next, from whichever stream; None if nothing does for so long."""
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            return None

    def join(self) -> None:
        """Waits for the threads to end, once `stopped` is set."""
        deadline = time.monotonic() + _ENDS_WITHIN_S
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def _pump(self, feed: str, items: Iterable[Any]) -> None:
        try:
            for item in items:
                if not self._put(Read(feed, item)):
                    return
            self._put(Read(feed, None))
        except Exception as error:  # noqa: BLE001 - whoever reads the queue raises it
            self._put(Read(feed, error))

    def _put(self, read: Read) -> bool:
        """Waits for room in the queue, unless nothing is wanted any more."""
        while not self.stopped.is_set():
            try:
                self._queue.put(read, timeout=0.1)
            except Full:
                continue
            return True
        return False
