"""What the workers of this machine write: kept by rank, and shown as `--logs` says.

worker: stdout, stderr  --pipes-->  a thread of the launcher  -->  the worker's file
                        --horovodrun, ssh-->                  -->  the launcher's own streams
"""

import fcntl
import os
import selectors
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import StorageError
from distrain.coordinator.stops import BEGAN
from launch.failure import tell
from launch.output.log_place import LogPlace, path_of
from launch.output.output_lines import LineCutter
from launch.output.output_pipes import ALL, RANK_0, STREAMS, open_pipes
from launch.output.screen import Screen
from launch.output.worker_log import WorkerLog

_CHUNK_BYTES = 1 << 16

_LOOK_EVERY_S = 0.2
"""How often it is looked whether there is a place for the files by now."""


class WorkerOutput:
    """The output of one start after the other."""

    def __init__(self, folder: Path | None, shown: str, place: LogPlace | None) -> None:
        """Takes nothing yet.

        Args:
            folder: The one of the reports; the pipes are in it. None for workers that have none,
                whose output somebody hands over by `take`.
            shown: One of `output_pipes.CHOICES`.
            place: Where files are kept; None for none.
        """
        self._folder, self._shown, self._place = folder, shown, place
        self._screens = {
            stream: Screen(file, with_ranks=shown == ALL)
            for stream, file in {1: sys.stdout, 2: sys.stderr}.items()
        }
        self._start: _Start | None = None
        self._reader: _PipeReader | None = None

    def begin(self, ranks: Sequence[int], launch: str | None = None) -> None:
        """A start of workers of these ranks comes; `launch` names it on several machines."""
        if self._place is not None:
            with suppress(StorageError):
                self._place.begin(launch or os.environ[BEGAN])
        shown = [rank for rank in ranks if self._shows(rank)]
        self._start = _Start(ranks, self._place, dict.fromkeys(shown, self._screens))
        if self._folder is not None:
            self._reader = _PipeReader(self._folder, self._start)

    def take(self, rank: int, stream: int, data: bytes) -> None:
        """What a worker without a pipe has written; any thread may hand it over."""
        assert self._start is not None
        self._start.take(rank, stream, data)

    def look_for_place(self) -> None:
        """To be called now and then, where there are no pipes: there may be one for the files."""
        assert self._start is not None
        self._start.look_for_place()

    def end(self) -> None:
        """The start's workers are dead: what they have written is taken to the last byte."""
        if self._reader is not None:
            self._reader.close()
        elif self._start is not None:
            self._start.close()

    def tell_last_words(self, rank: int) -> None:
        """Shows the last lines of a worker that is the cause of a failure, unless they were."""
        log = None if self._start is None else self._start.logs.get(rank)
        if log is None or not log.last or self._shows(rank):
            return
        kept = f" (all is in {log.path})" if log.path is not None and log.path.exists() else ""
        lines = b"".join(f"[rank {rank}] ".encode() + line + b"\n" for line in log.last)
        said = f"distrain: the last lines of rank {rank}{kept}:\n"
        tell(said + lines.decode(errors="replace"), sys.stderr)

    def _shows(self, rank: int) -> bool:
        return self._shown == ALL or (self._shown == RANK_0 and rank == 0)


@dataclass
class _Stream:
    """One stream of one worker."""

    rank: int
    log: WorkerLog
    screen: Screen | None
    cutter: LineCutter = field(default_factory=LineCutter)

    def take(self, data: bytes, *, is_end: bool) -> None:
        lines = self.cutter.add(data) + (self.cutter.end() if is_end else b"")
        if lines:
            self.log.add(lines)
        if self.screen is not None:
            self.screen.show(self.rank, lines, self.cutter.in_place)


class _Start:
    """What the workers of one start write: on screens, and in files once there is a place."""

    def __init__(
        self,
        ranks: Sequence[int],
        place: LogPlace | None,
        screens: Mapping[int, Mapping[int, Screen]],
    ) -> None:
        self.logs = {rank: WorkerLog() for rank in ranks}
        self.has_place = place is None
        self._place, self._one_at_a_time = place, threading.Lock()
        self._streams = {
            (rank, stream): _Stream(rank, log, screens.get(rank, {}).get(stream))
            for rank, log in self.logs.items()
            for stream in STREAMS
        }

    def take(self, rank: int, stream: int, data: bytes, *, is_end: bool = False) -> None:
        with self._one_at_a_time:
            self._streams[rank, stream].take(data, is_end=is_end)

    def look_for_place(self, *, at_end: bool = False) -> None:
        if self.has_place or self._place is None:
            return
        with suppress(StorageError):
            stem = self._place.stem(at_end=at_end)
            if stem is not None:
                with self._one_at_a_time:
                    self.has_place = True
                    for rank, log in self.logs.items():
                        log.move_to(path_of(stem, rank))

    def close(self) -> None:
        """No more will come: unfinished lines are taken as lines."""
        self.look_for_place(at_end=True)
        for rank, stream in self._streams:
            self.take(rank, stream, b"", is_end=True)
        for log in self.logs.values():
            log.close()


class _PipeReader:
    """The thread that reads what the workers of one start write to their pipes."""

    def __init__(self, folder: Path, start: _Start) -> None:
        self._start = start
        self._selector = selectors.DefaultSelector()
        for rank in start.logs:
            for stream, end in open_pipes(folder, rank).items():
                self._selector.register(end, selectors.EVENT_READ, (rank, stream))
        self._ear, self._mouth = os.pipe()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._read_all, name="distrain-output", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Has the thread take what is left, and waits for that."""
        if self._mouth >= 0:
            os.close(self._mouth)
            self._mouth = -1
            self._thread.join()

    def _read_all(self) -> None:
        is_over = False
        while not is_over:
            for key, _ in self._selector.select(None if self._start.has_place else _LOOK_EVERY_S):
                if key.data is None:
                    is_over = True
                else:
                    self._read(key, _CHUNK_BYTES)
            self._start.look_for_place(at_end=is_over)
        for key in list(self._selector.get_map().values()):
            if key.data is not None:
                self._read_rest(key)
        self._selector.close()
        os.close(self._ear)
        self._start.close()

    def _read(self, key: selectors.SelectorKey, most: int) -> int:
        """Takes so many bytes at most; how many there were, None having closed the pipe."""
        try:
            data = os.read(key.fd, most)
        except BlockingIOError:
            return 0
        rank, stream = key.data
        self._start.take(rank, stream, data, is_end=not data)
        if not data:
            self._selector.unregister(key.fd)
            os.close(key.fd)
        return len(data)

    def _read_rest(self, key: selectors.SelectorKey) -> None:
        """What was in the pipe when the worker died; who has it still open may write for ever."""
        left = fcntl.fcntl(key.fd, fcntl.F_GETPIPE_SZ)
        while key.fd in self._selector.get_map() and left > 0:
            taken = self._read(key, left)
            left = left - taken if taken else 0
        if key.fd in self._selector.get_map():
            os.close(key.fd)
