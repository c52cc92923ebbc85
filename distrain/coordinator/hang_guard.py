"""A worker that hangs is found out: by its launcher, or by a thread of its own where it has none.

Under a launcher of ours a worker keeps its pulse where that one looks, and leaves its stacks there
when it is told to by a signal; C code answers it, so the main thread may be anywhere. Else a thread
looks at this worker's pulse alone, and ends the process.
"""

import faulthandler
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

from distrain.coordinator.phases import PhaseClock, own_words
from distrain.coordinator.pulse import (
    Standstill,
    Worker,
    at_fault,
    hang_text,
    open_pulse,
    pulse_of,
)
from distrain.coordinator.stacks import keep_stacks
from distrain.coordinator.stops import end_process, is_launched, pulse_folder
from distrain.errors import HangError

DUMP = int(signal.SIGRTMIN) + 7
"""Has a worker leave the stacks of all its threads for its launcher."""

NOTE_S = 5.0
"""So long the folder may take to have the hang noted: it may be what hangs."""

_LOOKS_PER_LIMIT, _MOST_BETWEEN_LOOKS_S = 4, 0.5

_DEBUGGERS = ("pdb", "bdb", "ipdb", "pudb", "debugpy", "pydevd", "_pydevd_bundle", "code")


def stacks_file(folder: Path, rank: int) -> Path:
    """Where a worker leaves its stacks for its launcher."""
    return folder / f"stacks-{rank}"


class Guard:
    """Holds the watch over a worker that has no launcher."""

    def __init__(self) -> None:
        """It watches."""
        self._held = threading.Lock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No hang ends the process meanwhile: something else is about to."""
        with self._held:
            yield

    @property
    def is_paused(self) -> bool:
        """Whether it is now."""
        return self._held.locked()


@contextmanager
def guarded(
    phases: PhaseClock, worker: Worker, note: Callable[[HangError], None]
) -> Iterator[Guard]:
    """The worker is watched until the end of the block.

    Args:
        phases: Its marks, which are kept in a pulse from here on.
        worker: This process; a `limit_s` of 0 has nobody watch.
        note: Notes a hang in the run's folder, called by a thread before the process ends.
    """
    guard, folder = Guard(), pulse_folder()
    over, threads = threading.Event(), list[threading.Thread]()
    words = own_words()
    if worker.limit_s and folder is not None:
        _answer(stacks_file(folder, worker.rank))
        words = open_pulse(folder, worker)  # whoever sees it may send the signal
    phases.begin(words)
    if worker.limit_s and folder is None:
        watched = threading.get_ident()

        def watch() -> None:
            _watch_self(words, worker, note, guard, over, watched)

        threads.append(threading.Thread(target=watch, name="distrain-hangs", daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield guard
    finally:
        phases.end()
        over.set()
        for thread in threads:
            thread.join()


@cache
def _answer(path: Path) -> None:
    """From now on the signal adds this process's stacks to a file."""
    faulthandler.register(DUMP, path.open("a"), all_threads=True)


def _watch_self(
    words: memoryview,
    worker: Worker,
    note: Callable[[HangError], None],
    guard: Guard,
    over: threading.Event,
    watched: int,
) -> None:
    """Looks at this process's own pulse, and ends the process by `HangError` if it stands still."""
    every_s = min(_MOST_BETWEEN_LOOKS_S, worker.limit_s / _LOOKS_PER_LIMIT)
    standstill = Standstill()
    while not over.wait(every_s):
        pulse = pulse_of(worker, words)
        if guard.is_paused or is_debugged(sys._current_frames().get(watched)):
            standstill = Standstill()
            continue
        stood_s = standstill.look([pulse], time.monotonic())
        if at_fault([pulse], stood_s, ()):
            with tempfile.TemporaryFile("w+") as file:
                faulthandler.dump_traceback(file, all_threads=True)
                file.seek(0)
                stacks = file.read()
            text = hang_text([pulse], stood_s)
            path = keep_stacks(pulse, stood_s[worker.rank], stacks)
            text += f"; its stacks are in {path}" if path else f"; its stacks:\n{stacks}"
            phase = pulse.phase.name.lower()
            error = HangError(text, rank=worker.rank, step=pulse.steps_done + 1, phase=phase)
            noting = threading.Thread(target=note, args=(error,), daemon=True)
            noting.start()
            noting.join(NOTE_S)
            if not is_launched():
                sys.stderr.write(f"distrain (rank {worker.rank}): {text}\n")
                sys.stderr.flush()
            end_process(error)


def is_debugged(frame: FrameType | None) -> bool:
    """Whether somebody sits in a debugger there."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False
