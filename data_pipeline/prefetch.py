"""Batches prepared ahead, in threads, and handed over in the order of their spans."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data_pipeline.batches import Batch, BatchBuilder, Buffers
from data_pipeline.dataset import Dataset
from data_pipeline.heads import Span
from data_pipeline.recipe import Recipe
from data_pipeline.resident import ResidentLimit

_Ticket = queue.SimpleQueue[tuple[Batch, Buffers] | BaseException | None]
"""Where the batch of a span will lie, or None behind the last; they stand in the spans' order."""


class Prefetcher:
    """Iterates over spans and prepares up to `depth` batches ahead, in `threads` threads.

    The batches do not depend on either. An error in a thread is raised by the `next()` that would
    have given its batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        spans: Iterable[Span],
        *,
        max_rows: int,
        depth: int = 2,
        threads: int = 1,
        pin_memory: bool = False,
    ) -> None:
        """Starts the threads at once; `max_rows` is the longest span's length."""
        if depth < 1 or threads < 1:
            raise ValueError(f"depth is {depth} and threads is {threads}; both must be 1 or more")
        self._spans, self._max_rows = iter(spans), max_rows
        self._sampling, self._builder = recipe.sampled(dataset), BatchBuilder(dataset, recipe)
        self._resident = ResidentLimit(dataset)
        # depth batches wait or are being made, one is in the consumer's hands.
        self._free: queue.SimpleQueue[Buffers | None] = queue.SimpleQueue()
        for _ in range(max(depth, threads) + 1):
            self._free.put(self._builder.buffers(max_rows, pinned=pin_memory))
        self._line: queue.SimpleQueue[_Ticket] = queue.SimpleQueue()
        self._taking, self._ended = threading.Lock(), False
        self._held: Buffers | None = None
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name="distrain-loader", daemon=True)
            for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            buffers = self._free.get()
            if buffers is None or self._closed.is_set():
                return
            ticket: _Ticket = queue.SimpleQueue()
            try:
                taken = self._take(ticket)
                if taken is None:
                    return
                span, rows = taken
                batch = self._builder.build(span, rows, buffers)
                self._resident.note(span.stop - span.start)
                ticket.put((batch, buffers))
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
                ticket.put(error)

    def _take(self, ticket: _Ticket) -> tuple[Span, NDArray[np.int64]] | None:
        """The next span with its rows, and a place in the line; None once all are taken."""
        with self._taking:
            if self._ended:
                return None
            self._ended = True  # unless all goes well: nothing comes after the end or an error
            self._line.put(ticket)
            span = next(self._spans, None)
            if span is None:
                ticket.put(None)
                return None
            if span.stop - span.start > self._max_rows:
                raise ValueError(
                    f"{span} has more than the {self._max_rows} rows that buffers hold"
                )
            rows = self._sampling.rows(span.epoch, span.start, span.stop)
            self._ended = False
        return span, rows

    def __iter__(self) -> Iterator[Batch]:
        """The prefetcher itself: it can be gone through once."""
        return self

    def __next__(self) -> Batch:
        """The next span's batch; the one before is given up.

        Raises:
            StopIteration: all spans were served, or the prefetcher was closed.
        """
        if self._held is not None:
            self._free.put(self._held)
            self._held = None
        if self._closed.is_set():
            raise StopIteration
        result = self._line.get().get()
        if self._closed.is_set():  # by another thread, meanwhile
            raise StopIteration
        if result is None or isinstance(result, BaseException):
            self.close()
            if result is None:
                raise StopIteration
            if isinstance(result, StopIteration):  # it would pass for the end of the spans
                raise RuntimeError("a transform raised StopIteration") from result
            raise result
        batch, self._held = result
        return batch

    def close(self) -> None:
        """Ends the threads and waits for them; may be called more than once."""
        self._closed.set()
        for _ in self._threads:
            self._free.put(None)
        for thread in self._threads:
            thread.join()
        ended: _Ticket = queue.SimpleQueue()
        ended.put(None)
        self._line.put(ended)  # for a thread that waits for a batch

    def __enter__(self) -> Self:
        """For `with`: the threads are ended at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the threads."""
        self.close()
