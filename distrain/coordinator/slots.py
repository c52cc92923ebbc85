"""The slots of a run on one host: one is filled while another is read, and a third one stands."""

import mmap
from collections.abc import Callable

from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.snapshot import Slot, slot_bytes


class Slots:
    """Takes snapshots, each to a slot that nobody needs; makes slots as they are needed."""

    def __init__(
        self, allocate: Callable[[int, int], mmap.mmap], *, keeps_newest: bool = False
    ) -> None:
        """`allocate(number, num_bytes)` gives a slot's memory.

        `keeps_newest`: a death in the middle of a copy must leave the snapshot before it.
        """
        self._allocate, self._keeps_newest = allocate, keeps_newest
        self._slots: list[Slot] = []
        self._newest: Slot | None = None

    @property
    def newest_step(self) -> int | None:
        """Of the newest snapshot."""
        return None if self._newest is None else self._newest.step

    def prepare(self, num_bytes: int) -> None:
        """Makes the slots that will be needed at least.

        Raises:
            NoRoomError: there is too little memory.
        """
        while len(self._slots) < 1 + self._keeps_newest:
            self._slots.append(Slot(self._allocate(len(self._slots), num_bytes)))

    def take(
        self, step: int, contents: CheckpointContents, read: Slot | None = None
    ) -> tuple[Slot, CheckpointContents]:
        """Copies a run's state; the slot, and what lies in it. `read` is left alone.

        Raises:
            NoRoomError: there is too little memory.
        """
        needed = [read, self._newest] if self._keeps_newest else [read]
        free = (n for n, slot in enumerate(self._slots) if slot not in needed)
        number = next(free, len(self._slots))
        if number == len(self._slots):
            self._slots.append(Slot(self._allocate(number, slot_bytes(contents))))
        copied = self._slots[number].fill(step, contents)
        if copied is None:  # the state has outgrown it
            self._slots[number] = Slot(self._allocate(number, slot_bytes(contents)))
            copied = self._slots[number].fill(step, contents)
        assert copied is not None
        self._newest = self._slots[number]
        return self._newest, copied
