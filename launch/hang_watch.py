"""The launcher's watch over its workers' pulses: who hangs, and what all of them are doing then."""

import os
import signal
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from distrain.coordinator.hang_guard import DUMP, stacks_file
from distrain.coordinator.pulse import (
    Pulse,
    Standstill,
    at_fault,
    hang_text,
    is_halted,
    read_pulses,
    tell_hang,
)
from distrain.coordinator.stacks import keep_stacks
from distrain.errors import ExitCode
from launch.failure import Cause
from launch.parent import signal_main_thread

LOOK_EVERY_S, LOOKS_PER_LIMIT = 0.5, 4

MAIN_S, WRITTEN_S = 1.0, 2.0
"""So long a worker's main thread, and then another one, may take to leave the stacks of all: one
that is in a system call that never ends can't."""

_QUIET_S = 0.1


class HangWatch:
    """Looks at the pulses of the workers of one machine, over all their starts."""

    def __init__(self, folder: Path) -> None:
        """`folder` is where the workers keep their pulses."""
        self._folder = folder
        self._hung_in: int | None = None
        self.prepare()

    def prepare(self) -> None:
        """Comes before each start."""
        for path in (*self._folder.glob("pulse-*"), *self._folder.glob("stacks-*")):
            path.unlink()
        self._standstill, self._next_look = Standstill(), 0.0
        self._stood_s: dict[int, float] = {}

    def look(self, pids: Collection[int]) -> Cause | None:
        """The workers that hang, of these processes, if any do; then all have left their stacks.

        A run that hangs again in the very step of the last time is not worth another start.
        """
        now = time.monotonic()
        if now < self._next_look:
            return None
        pulses = self._pulses(pids)
        limits_s = [pulse.worker.limit_s for pulse in pulses]
        self._next_look = now + min([LOOK_EVERY_S, *(s / LOOKS_PER_LIMIT for s in limits_s)])
        self._stood_s = self._standstill.look(pulses, now)
        late = [p for p in pulses if self._stood_s[p.worker.rank] > p.limit_s]
        halted = [p.worker.rank for p in late if is_halted(p.worker.pid)]
        hung = at_fault(pulses, self._stood_s, halted)
        if not hung:
            return None
        hung = sorted(hung, key=lambda pulse: -self._stood_s[pulse.worker.rank])
        text = hang_text(hung, self._stood_s, halted) + self.leave_stacks(pids, holds=True)
        again, self._hung_in = self._hung_in == hung[0].steps_done, hung[0].steps_done
        if again:
            text += "; it hung in this step before"
        tell_hang(self._folder, text, hung)
        return Cause(hung[0].worker.rank, ExitCode.FAULT, text, is_hang=not again)

    def leave_stacks(self, pids: Collection[int], *, holds: bool = False) -> str:
        """Has these processes leave their stacks in the run's folder; says where, if they have.

        Who was stopped by a signal is woken for it, last of all, and stopped again. With `holds`
        the others are stopped before that: all are about to be killed, and none is to go on.
        """
        pulses = self._pulses(pids)
        files = [stacks_file(self._folder, pulse.worker.rank) for pulse in pulses]
        sizes = [file.stat().st_size for file in files]
        halted = [is_halted(pulse.worker.pid) for pulse in pulses]
        for is_woken in (False, True):
            asked = [at for at, was_halted in enumerate(halted) if was_halted == is_woken]
            _have_answered(
                [pulses[at].worker.pid for at in asked],
                [files[at] for at in asked],
                [sizes[at] for at in asked],
                stops=is_woken or holds,
            )
        found, kept = [], None
        for pulse, file, size in zip(pulses, files, sizes, strict=True):
            stacks = file.read_text()[size:]
            stacks = stacks or f"It has not answered within {WRITTEN_S:g} s: in a system call?\n"
            stood_s = self._stood_s.get(pulse.worker.rank, 0.0)
            kept = keep_stacks(pulse, stood_s, stacks) or kept
            found.append(f"rank {pulse.worker.rank}:\n{stacks}")
        if kept is not None:
            return f"; the stacks of all are in {kept.parent}"
        return "; the stacks of all:\n" + "\n".join(found) if found else ""

    def _pulses(self, pids: Collection[int]) -> list[Pulse]:
        return [pulse for pulse in read_pulses(self._folder) if pulse.worker.pid in pids]


def _have_answered(
    pids: Sequence[int], files: Sequence[Path], sizes: Sequence[int], *, stops: bool
) -> None:
    """Has processes add their stacks to files of these sizes, and `stops` them then."""
    if not pids:
        return
    for pid in pids:
        with suppress(ProcessLookupError):
            # The main thread answers before it does anything else; a stopped one answers none.
            signal_main_thread(pid, DUMP)
            os.kill(pid, signal.SIGCONT)
    for silent in _silent(files, sizes, MAIN_S):
        with suppress(ProcessLookupError):
            os.kill(pids[silent], DUMP)  # any of its threads will do
    _silent(files, sizes, WRITTEN_S)
    for pid in pids if stops else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)


def _silent(files: Sequence[Path], sizes: Sequence[int], within_s: float) -> list[int]:
    """Waits until all files have grown and do so no more; those that have not in that time."""
    end, since, before = time.monotonic() + within_s, time.monotonic(), list(sizes)
    while time.monotonic() < end:
        now = [file.stat().st_size for file in files]
        if now != before:
            since, before = time.monotonic(), now
        if _unchanged(now, sizes) == [] and time.monotonic() - since > _QUIET_S:
            return []
        time.sleep(0.01)
    return _unchanged(before, sizes)


def _unchanged(now: Sequence[int], sizes: Sequence[int]) -> list[int]:
    return [at for at, (new, old) in enumerate(zip(now, sizes, strict=True)) if new == old]
