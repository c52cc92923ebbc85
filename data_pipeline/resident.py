"""A limit on how much of a memory-mapped data set stays in the process's own memory."""

import mmap
import os
import threading
from pathlib import Path

from data_pipeline.dataset import Dataset

LIMIT_BYTES = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 4
"""File pages beyond those at the start that a process may hold: a quarter of the machine's memory.

They are the system's to take at any time, and what is given back has to be faulted in again from
the file cache: with 256 MiB, a data set of 1.5 GB was read at a fourth of the speed.
"""

_FAULT_BYTES = 2**21
"""What one read can bring into the process: Linux maps pages round it, up to a large folio."""


class ResidentLimit:
    """Gives pages back once a process holds too many, so that reading more does not take more.

    Pages of a map count as the process's own until they are given back, although the system could
    take them at any time: without it, `top` would show the whole data set after an epoch.
    """

    def __init__(self, dataset: Dataset, limit_bytes: int = LIMIT_BYTES) -> None:
        """Counts from what the process holds now, but for the data set's own pages."""
        self._dataset, self._limit_bytes = dataset, limit_bytes
        total_bytes = sum(shard.size_bytes for shard in dataset.shards)
        self._idle = total_bytes <= limit_bytes
        if not self._idle:
            dataset.give_back()  # an earlier reader's pages would raise this one's limit
        row_bytes = total_bytes / dataset.num_rows + _FAULT_BYTES
        self._every_rows = max(1, int(limit_bytes / (4 * row_bytes)))
        self._start_bytes, self._rows, self._lock = file_bytes(), 0, threading.Lock()

    def note(self, rows: int) -> None:
        """Rows were read; whenever a quarter of the limit may have come, this looks."""
        if self._idle:
            return
        with self._lock:
            self._rows += rows
            if self._rows < self._every_rows:
                return
            self._rows = 0
        if file_bytes() - self._start_bytes > self._limit_bytes:
            self._dataset.give_back()
            self._start_bytes = file_bytes()  # libraries that came since are not to be had back


def file_bytes() -> int:
    """Pages of files that this process holds, its libraries included, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[2])
    return pages * mmap.PAGESIZE
