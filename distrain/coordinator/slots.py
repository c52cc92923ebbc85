"""The slots of a run on one host: one is filled while another is read, and a third one stands."""

import mmap
from collections.abc import Callable
from contextlib import suppress

from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.host_memory import NoRoomError
from distrain.coordinator.snapshot import Slot, slot_bytes


class Slots:
    """Takes snapshots, each to a slot that nobody needs.

    Attributes:
        is_ready: Whether the slots are made.
    """

    def __init__(
        self,
        allocate: Callable[[int, int], mmap.mmap],
        *,
        is_read: bool,
        keeps_newest: bool = False,
    ) -> None:
        """`allocate(number, num_bytes)` gives a slot's memory.

        Args:
            allocate: Raises NoRoomError where there is too little memory.
            is_read: One of the slots may be needed for a while, by who writes it to the disk.
            keeps_newest: A death in the middle of a copy must leave the snapshot before it.
        """
        self._allocate, self._keeps_newest = allocate, keeps_newest
        self._least = 1 + keeps_newest
        self._most = self._least + (is_read and keeps_newest)
        self._slots: list[Slot] = []
        self._newest: Slot | None = None
        self.is_ready = False

    def prepare(self, num_bytes: int) -> None:
        """Makes the slots before the first snapshot, which says so where there is no room.

        May be called in another thread meanwhile.
        """
        with suppress(NoRoomError):
            self._make(num_bytes)

    def _make(self, num_bytes: int) -> None:
        """Without room for the last one there are no snapshots during a write; raises for less."""
        while len(self._slots) < self._least:
            self._slots.append(Slot(self._allocate(len(self._slots), num_bytes)))
        with suppress(NoRoomError):
            while len(self._slots) < self._most:
                self._slots.append(Slot(self._allocate(len(self._slots), num_bytes)))
        self.is_ready = True

    def take(
        self, step: int, contents: CheckpointContents, read: Slot | None = None
    ) -> tuple[Slot, CheckpointContents] | None:
        """Copies a run's state; the slot, and what lies in it. `read` is left alone.

        None where all slots are needed just now.

        Raises:
            NoRoomError: there is too little memory.
        """
        if not self.is_ready:
            self._make(slot_bytes(contents))
        needed = [read, self._newest] if self._keeps_newest else [read]
        number = next((n for n, slot in enumerate(self._slots) if slot not in needed), None)
        if number is None:
            return None
        copied = self._slots[number].fill(step, contents)
        if copied is None:  # the state has outgrown it
            self._slots[number] = Slot(self._allocate(number, slot_bytes(contents)))
            copied = self._slots[number].fill(step, contents)
        assert copied is not None
        self._newest = self._slots[number]
        return self._newest, copied

    def clear(self) -> None:
        """Empties all slots."""
        self._newest = None
        for slot in self._slots:
            slot.clear()
