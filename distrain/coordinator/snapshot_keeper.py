"""A host's snapshots: where they lie, how often they are taken, and what is done without room."""

import time
from collections.abc import Callable
from pathlib import Path

from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.host_memory import NoRoomError, SnapshotFolder, own_memory
from distrain.coordinator.pace import Pace
from distrain.coordinator.slots import Slots
from distrain.coordinator.snapshot import Slot
from distrain.coordinator.stops import StoppedError
from distrain.coordinator.taking_up import is_first_of_host
from distrain.errors import ExitCode, exit_code_of, is_lost_peer
from distrain.parallel.world import World

PREPARED_AT_ONCE_BYTES = 8 * 2**20
"""Memory for larger snapshots is got in the background."""

Taken = tuple[Slot, CheckpointContents]
"""A slot, and the state that lies in it."""


class SnapshotKeeper:
    """Takes a run's snapshots, on the first worker of each host; all methods are called everywhere.

    They serve two ends: checkpoints are written from them while training goes on, and a restart
    finds the newest one in shared memory. Where there is no room for the second, memory of the
    process serves the first; without room for that, training waits while a checkpoint is written.

    Attributes:
        folder: Where they lie; None where none are wanted.
        held: Those that a start before has left here; None where none are wanted or looked for.
    """

    def __init__(
        self, world: World, path: Path | None, every_steps: int | None, note: Callable[..., None]
    ) -> None:
        """`path` is the run folder's; `note(event, text)` says what can't be had."""
        self._note, self._pace = note, Pace(every_steps)
        self.folder: SnapshotFolder | None = None
        self._slots: Slots | None = None
        self._is_written = False
        first = is_first_of_host(world)
        if path is not None and not self._pace.is_never:
            self.folder = SnapshotFolder(path)
        self.held = self.folder if first else None

    def begin(self, run_id: str, start: str, *, is_written: bool, lasting: bool) -> None:
        """Gets ready.

        Args:
            run_id: Of the run that they are of.
            start: Of its start.
            is_written: Checkpoints are written from them here.
            lasting: A restart may go on from them.
        """
        self._is_written = is_written
        if self.held is not None and lasting:
            try:
                self.held.begin(run_id, start)
                allocate = self.held.allocate
                self._slots = Slots(allocate, is_read=is_written, keeps_newest=True)
            except NoRoomError as error:
                self._give_up_lasting(error)
        else:
            self._pace = Pace(0)
            self._slots = Slots(own_memory, is_read=True) if is_written else None

    def _give_up_lasting(self, error: NoRoomError) -> None:
        """Goes on with what checkpoints need."""
        self._pace = Pace(0)
        self._slots = Slots(own_memory, is_read=True) if self._is_written else None
        self._note("snapshots", f"no snapshots in memory for a restart: {error}")

    @property
    def needs_memory(self) -> bool:
        """Whether `prepare` is worth calling."""
        return self._slots is not None and not self._slots.is_ready

    def prepare(self, num_bytes: int) -> None:
        """Gets memory for slots of this size; may be called in another thread meanwhile."""
        if self._slots is not None:
            self._slots.prepare(num_bytes)

    def is_due(self, step: int) -> bool:
        """Whether a restart should find the state after this step, which ends now."""
        return self._slots is not None and self._pace.is_due(step, time.monotonic())

    def take(self, step: int, contents: CheckpointContents) -> Taken | None:
        """A copy for a checkpoint, also for a restart to find; None where there is no room."""
        while self._slots is not None:
            try:
                taken = self._slots.take(step, contents)
            except NoRoomError as error:
                if not self._pace.is_never:
                    self._give_up_lasting(error)
                    continue
                self._slots = None
                text = f"training waits while checkpoints are written: {error}"
                self._note("snapshots", text)
            else:
                self._forget_others()
                return taken
        return None

    def refresh(
        self, step: int, contents: CheckpointContents, read: Slot | None, began_s: float
    ) -> None:
        """A copy for a restart to find, while `read` is being written.

        What it has taken since `began_s` says when the next one is due.
        """
        assert self._slots is not None
        try:
            taken = self._slots.take(step, contents, read)
        except NoRoomError as error:
            self._give_up_lasting(error)
            return
        if taken is None:
            return
        now_s = time.monotonic()
        self._pace.took(now_s - began_s, now_s)
        self._forget_others()

    def _forget_others(self) -> None:
        """There is a snapshot of this start: those of earlier ones go."""
        if self.held is not None and not self._pace.is_never:
            self.held.forget_others()

    def forget(self) -> None:
        """The run has gone back: what is here is of a time that counts no more."""
        if self._slots is not None:
            self._slots.clear()
        self._forget_others()

    def remove(self) -> None:
        """Nobody will need them any more."""
        if self.folder is not None:
            self.folder.remove()


def is_over(error: BaseException | None) -> bool:
    """Whether no start will need a run's snapshots after one that ended by this error, or none.

    A worker that was lost is started again. A run whose last save failed, or that was interrupted
    again while it saved, can go on from its memory; and what a newer start has taken over is its.
    """
    if error is None or isinstance(error, StoppedError):
        return True
    if is_lost_peer(error):
        return False
    return exit_code_of(error) not in (ExitCode.STORAGE, ExitCode.CTRL_C, ExitCode.CONFIG)
