"""Snapshots of a sharded run: each worker copies its own part, and all of them the same steps.

What a worker can and wants to do travels with every step's flags, so that all decide alike:

    flags of step 7 |       a copy of 7, where all are for it | flags of step 8 | ...

Who has the flags of step 8 knows that the others have made their copies of step 7. So nobody is
more than one copy ahead, and two slots a worker keep one state whole whenever anybody dies.
"""

import mmap
import time
from collections.abc import Callable, Sequence
from enum import IntFlag
from functools import partial

from distrain.coordinator.background_writer import BackgroundWriter
from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.host_memory import NoRoomError, SnapshotFolder, part_name
from distrain.coordinator.pace import Pace
from distrain.coordinator.slots import Slots
from distrain.coordinator.snapshot import slot_bytes
from distrain.coordinator.snapshot_keeper import PREPARED_AT_ONCE_BYTES
from distrain.coordinator.state_contents import optimizer_bytes
from distrain.parallel.world import World


class Word(IntFlag):
    """What a worker tells the others of its copies."""

    WANTS = 1
    """The state after this step should be copied."""
    HAS = 2
    """It has a copy."""
    NO_ROOM = 4
    """There is too little memory, for good."""


class PartSnapshots:
    """This worker's copies of its part; all methods are called on every worker.

    Attributes:
        is_due: All workers are for a copy of the state after the step that was just done.
    """

    def __init__(self, world: World, every_steps: int | None, note: Callable[..., None]) -> None:
        """`every_steps` is as for `Pace`; `note(event, text)` says what can't be had."""
        self._world, self._note, self._pace = world, note, Pace(every_steps)
        self._folder: SnapshotFolder | None = None
        self._slots: Slots | None = None
        self._preparing = BackgroundWriter(None)
        self._is_first = self._has_copy = self._all_have = False
        self._has_prepared = False
        self._beside_bytes = 0
        self._trouble = ""
        self.is_due = False

    def begin(self, folder: SnapshotFolder, run_id: str, start: str, *, is_first: bool) -> None:
        """Gets ready; `is_first` is true of one worker a host, who removes what nobody needs."""
        if self._pace.is_never:
            return
        self._folder, self._is_first = folder, is_first
        try:
            folder.begin(run_id, start)
        except NoRoomError as error:
            self._trouble = str(error)
        else:
            self._slots = Slots(self._allocate, is_read=False, keeps_newest=True)

    def _allocate(self, number: int, num_bytes: int) -> mmap.mmap:
        assert self._folder is not None
        name = part_name(self._world.rank, self._world.size)
        return self._folder.allocate(number, num_bytes, name=name, beside_bytes=self._beside_bytes)

    def word(self, step: int) -> int:
        """What the others are to know with the step that is being done."""
        if self._trouble:
            return Word.NO_ROOM
        if self._slots is None:
            return 0
        wants = not self._preparing.is_busy and self._pace.is_due(step, time.monotonic())
        return (Word.WANTS if wants else 0) | (Word.HAS if self._has_copy else 0)

    def told(self, words: Sequence[int]) -> None:
        """What all have said with a step that is done, by rank."""
        self.is_due = all(word & Word.WANTS for word in words)
        self._all_have = all(word & Word.HAS for word in words)
        without = [str(rank) for rank, word in enumerate(words) if word & Word.NO_ROOM]
        if without and not self._pace.is_never:
            self._pace, self._slots = Pace(0), None
            why = self._trouble or "its memory is short"
            ranks = ", ".join(without)
            text = f"no snapshots in memory for a restart: no room on rank {ranks}: {why}"
            self._note("snapshots", text)

    def take(self, step: int, contents: CheckpointContents) -> None:
        """Copies this worker's part of the state after a step that `is_due`."""
        began_s, self.is_due = time.monotonic(), False
        if self._slots is None:
            return
        if self._all_have:
            self._forget_others()
        self._beside_bytes = optimizer_bytes(contents) * (self._world.communicator.local_size - 1)
        if not self._has_prepared:
            self._has_prepared = True
            if (size := slot_bytes(contents)) > PREPARED_AT_ONCE_BYTES:
                self._preparing.prepare(partial(self._slots.prepare, size))
                return
        try:
            self._slots.take(step, contents)
        except NoRoomError as error:
            self._slots, self._trouble = None, str(error)
            return
        self._has_copy = True
        now_s = time.monotonic()
        self._pace.took(now_s - began_s, now_s)

    def _forget_others(self) -> None:
        """Those of earlier starts go, once there is a whole state of this one."""
        if self._is_first and self._folder is not None:
            self._folder.forget_others()

    def forget(self) -> None:
        """The run has gone back: what is here is of a time that counts no more."""
        self.is_due = self._has_copy = self._all_have = False
        if self._slots is not None:
            self._slots.clear()
            self._forget_others()
