"""A run's states: when they are saved, how they reach the disk, and where they are taken up."""

import json
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import torch

from data_pipeline.errors import StorageError
from distrain.coordinator.background_writer import (
    BackgroundWriter,
    WriteNews,
    Written,
    write_last,
    write_timed,
)
from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.checkpoint_store import CheckpointStore
from distrain.coordinator.checkpointing import Checkpoint, CheckpointKeeper, is_scheduled, take_up
from distrain.coordinator.part_snapshots import PartSnapshots
from distrain.coordinator.recording import Recording
from distrain.coordinator.return_point import ReturnPoints
from distrain.coordinator.run_state import RunState
from distrain.coordinator.snapshot import Slot, slot_bytes
from distrain.coordinator.snapshot_keeper import PREPARED_AT_ONCE_BYTES, SnapshotKeeper, is_over
from distrain.coordinator.state_contents import StateContents, WholeOptimizer
from distrain.coordinator.stops import StopAskedError, StoppedError, end_process, reason_of
from distrain.coordinator.stored_checkpoints import begun_store, open_store
from distrain.coordinator.taking_up import Found, newest_state
from distrain.errors import BadStepError, ConfigError
from distrain.parallel.communicator import broadcast_bytes
from distrain.parallel.summing import Flag
from distrain.parallel.world import World
from distrain.step import StepResult, TrainingStep

AT_REST_S = 5.0
"""So long an update may take that stands between a stop and the last save."""


class Saver:
    """Saves a run's states; a context manager, which ends once all is written.

    All methods are called on every rank; rank 0 writes.

    Attributes:
        unsaved_step: Of the newest checkpoint that could not be written, 0 where the last one was;
            the same on every rank after each step.
    """

    def __init__(
        self,
        world: World,
        recording: Recording,
        policy: Checkpoint | None,
        path: str | Path | None = None,
    ) -> None:
        """`policy` is None for a run that saves nothing; `path` is the run folder's."""
        self._world, self._recording, self._policy = world, recording, policy
        self._store: CheckpointStore | None = None
        self._keeper: CheckpointKeeper | None = None
        self._writer: BackgroundWriter | None = None
        every_steps = policy.snapshot_every if policy is not None else 0
        where = Path(path) if path is not None else None
        self._snapshots = SnapshotKeeper(world, where, every_steps, recording.note)
        self._parts = PartSnapshots(world, every_steps, recording.note)
        self._read: Slot | None = None
        self._state = RunState()
        self._best: Mapping[str, torch.Tensor] = {}
        self._kept: StateContents | None = None
        self._on_disk = 0
        self._saving = threading.Lock()
        self._stall_s = 0.0
        self._news = WriteNews(recording.note)
        self._has_prepared = False
        self.unsaved_step = 0

    def take_up(
        self, model: torch.nn.Module, step: TrainingStep, last_step: int, back_to: ReturnPoints
    ) -> tuple[RunState, dict[str, torch.Tensor], Found]:
        """Sets model, average and optimizer as the newest good state says, on every rank.

        And what the run may go back to, which each checkpoint has as well.

        Returns:
            The run's state, that of a run's begin where there is none; the best weights so far;
            and where the state was found.

        Raises:
            StorageError: there are checkpoints, and none is good.
            ConfigError: the run has gone beyond `last_step`; or its checkpoints are elsewhere.
        """
        if (folder := self._recording.folder) is not None:
            address = self._policy.store if self._policy else None
            self._store = open_store(folder.path, folder.run_id, address)
        found = newest_state(folder, self._store, self._snapshots.held, self._world)
        if found.step > last_step:
            raise ConfigError(
                f"the run stands after step {found.step}, and {last_step} steps are asked for: "
                "give more epochs, name another folder with --run.dir, or start with --fresh, "
                "which moves it aside"
            )
        average, ownership = step.average, step.update.ownership
        self._kept = StateContents(ownership, average, back_to)
        state, best = take_up(found.contents, model, ownership, average, self._world, back_to)
        self._state, self._best = state, best
        # A stop in the first step saves what so far is in memory alone.
        step.standing.steps_done = state.step
        self._on_disk = 0 if found.is_from_memory else found.step
        return state, best, found

    @property
    def run_state(self) -> RunState:
        """The run's, as far as has been told."""
        return self._state

    def begin(self) -> None:
        """From here on states may be saved."""
        folder = self._recording.folder
        told = json.dumps([folder.run_id, secrets.token_hex(8)]).encode() if folder else b""
        told = broadcast_bytes(told, self._world.communicator, self._world.device)
        if self._policy is None or not told:
            return
        run_id, start = json.loads(told)
        if folder is not None and self._store is not None:
            if not self._state.step:
                address = self._policy.store
                self._store = begun_store(folder.path, folder.run_id, address, self._store)
            self._keeper = CheckpointKeeper(self._policy, self._store, folder.check_generation)
        is_keeper = self._keeper is not None
        shared = self._contents.ownership.is_shared  # no worker has all of the state
        self._snapshots.begin(run_id, start, is_written=is_keeper, lasting=not shared)
        if shared and self._snapshots.folder is not None:
            is_first = self._snapshots.held is not None
            self._parts.begin(self._snapshots.folder, run_id, start, is_first=is_first)
        self._writer = BackgroundWriter(self._keeper.write if self._keeper else None)

    def flags(self) -> dict[Flag, int]:
        """What all workers are to know with the next step.

        That rank 0 wants to save, or could not; what this one can do about a copy of its part.

        Raises:
            ConfigError: a newer start has taken the run over.
        """
        self._tell()
        return {
            Flag.SAVE: int(self._is_time()),
            Flag.UNSAVED: self._news.failed_step,
            Flag.SNAPSHOT: self._parts.word(self._state.step + 1),
        }

    def _is_time(self) -> bool:
        if self._keeper is None or self._writer is None or self._writer.is_busy:
            return False
        return self._keeper.is_time()

    def step(self, result: StepResult, state: RunState) -> None:
        """A step was done, and all know with it what `flags` has said on each of them."""
        self._state = state
        self._parts.told(result.flags[Flag.SNAPSHOT])
        self.unsaved_step = max(result.flags[Flag.UNSAVED])
        self._news.note_failure()

    def passed(self, state: RunState) -> None:
        """Steps were counted that are not done."""
        self._state = state
        self._recording.reached(state)

    def _tell(self, *, wait: bool = False) -> None:
        """Tells of the checkpoint that was written in the background, if there is one."""
        written = self._writer.told(wait=wait) if self._writer else None
        if written is not None:
            self._news.told(written, self._stall_s)

    def state(
        self,
        state: RunState,
        model: torch.nn.Module,
        training_step: TrainingStep,
        best: Mapping[str, torch.Tensor],
        *,
        asked: bool,
    ) -> None:
        """A step is done with all that follows from it; its state is saved if that is due.

        `asked`: rank 0 has said with the step that its clock wants a checkpoint. One that can't be
        written is said so, and the run goes on: it is tried again soon.

        Raises:
            DivergedError: the workers no longer hold one state, so rank 0's is not to be kept.
        """
        began = time.monotonic()
        with self._saving:
            self._state, self._best = state, best
        self._recording.reached(state)
        if self._policy is None:
            return
        ownership = training_step.update.ownership
        if asked or is_scheduled(self._policy, state):
            training_step.check.compare(state.step)
            self._save(model.state_dict(), self._optimizer_state(), began)
        elif not ownership.is_shared:
            self._snapshot(model, began)
        if self._parts.is_due:
            part = self._contents.part(
                state, best, model.state_dict(), has_rest=self._world.rank == 0
            )
            self._parts.take(state.step, part)

    def went_back(
        self,
        bad: BadStepError,
        state: RunState,
        model: torch.nn.Module,
        training_step: TrainingStep,
        best: Mapping[str, torch.Tensor],
    ) -> None:
        """The run goes on from an earlier state; it is saved, and no later one is kept then."""
        self.drain()
        self._on_disk = -1  # what was written after it counts no more
        self._snapshots.forget()
        self._parts.forget()
        self._recording.went_back(bad, state)
        self.state(state, model, training_step, best, asked=True)

    def keep(self, model: torch.nn.Module, training_step: TrainingStep) -> None:
        """Saves the state before a step that ends the run, so that it can be looked at."""
        if self._state.step > self._on_disk:
            self.state(self._state, model, training_step, self._best, asked=True)

    @property
    def _contents(self) -> StateContents:
        assert self._kept is not None
        return self._kept

    def _optimizer_state(self, *, apart: bool = False, is_needed: bool = False) -> WholeOptimizer:
        """Where it is spread over the workers, all of them are needed to bring it together."""
        is_needed = is_needed or self._keeper is not None
        return self._contents.optimizer(self._state, self._best, is_needed=is_needed, apart=apart)

    def _whole(
        self, model: Mapping[str, torch.Tensor], optimizer: WholeOptimizer
    ) -> CheckpointContents:
        return self._contents.whole(self._state, self._best, model, optimizer)

    def _save(
        self, model: Mapping[str, torch.Tensor], optimizer: WholeOptimizer, began: float
    ) -> None:
        """Takes a snapshot and has it written, once the checkpoint before is."""
        if self._keeper is None or self._writer is None:
            return
        self._tell(wait=True)
        with self._saving:
            state, found = self._state, self._whole(model, optimizer)
            taken = self._snapshots.take(state.step, found)
            self._read, copied = taken or (None, found)
            self._writer.submit(state, copied)
        if taken is not None:
            self._stall_s = time.monotonic() - began
        elif written := self._writer.told(wait=True):  # read from where the next step will move it
            self._news.told(written, time.monotonic() - began)

    def _snapshot(self, model: torch.nn.Module, began: float) -> None:
        """Takes a snapshot where one is due; gets the memory for it while the next steps go on."""
        if self._writer is None:
            return
        if self._snapshots.needs_memory and not self._has_prepared:
            self._has_prepared = True
            found = self._snapshot_contents(model)
            num_bytes = slot_bytes(found)
            if num_bytes > PREPARED_AT_ONCE_BYTES:
                self._writer.prepare(partial(self._snapshots.prepare, num_bytes))
        if self._writer.is_preparing or not self._snapshots.is_due(self._state.step):
            return
        with self._saving:
            found = self._snapshot_contents(model)
            read = self._read if self._writer.is_busy else None
            self._snapshots.refresh(self._state.step, found, read, began)

    def _snapshot_contents(self, model: torch.nn.Module) -> CheckpointContents:
        return self._whole(model.state_dict(), self._optimizer_state(is_needed=True))

    def stop(self, asked: StopAskedError, model: torch.nn.Module) -> NoReturn:
        """Saves the state as it stands, and ends the run; called on every rank.

        Rank 0 writes, and tells the others by a closing exchange how that went: none ends before.

        Raises:
            StoppedError: all is saved.
            StorageError: it could not be; the last checkpoint stands.
        """
        reason = str(reason_of(asked.flags))
        trouble = ""
        changed = self._policy is not None and self._state.step > self._on_disk
        optimizer = self._optimizer_state() if changed else WholeOptimizer()
        if self._keeper is not None:
            state = model.state_dict() if changed else None
            try:
                self._save_last(self._keeper, reason, state, optimizer)
            except StorageError as error:
                trouble = f"stopped by {reason}, and the last save failed: {error}"
        told = broadcast_bytes(trouble.encode(), self._world.communicator, self._world.device)
        if told:
            raise StorageError(told.decode())
        raise StoppedError(reason)

    def save_unfinished(self, reason: str, training_step: TrainingStep) -> None:
        """No step has ended in time: saves the state after the last one, and ends the process.

        Called by the thread that watches for stops, on every rank; rank 0 alone acts, and its end
        is the others'; where the optimizer's state is shared they first hand it their parts. The
        main thread is in the middle of a step that nobody will miss.
        """
        ownership = training_step.update.ownership
        is_needed = self._policy is not None and ownership.is_shared
        if self._keeper is None and not is_needed:
            return
        try:
            with ExitStack() as stack:
                model: Mapping[str, torch.Tensor] | None = None
                optimizer = WholeOptimizer()
                if self._state.step > self._on_disk:
                    rest = training_step.standing.at_rest(lambda: self._state.step, AT_REST_S)
                    model = stack.enter_context(rest)
                    optimizer = self._optimizer_state(apart=True)
                if self._keeper is None:
                    return
                self._save_last(self._keeper, reason, model, optimizer)
                end_process(StoppedError(reason))  # within: nothing may move any more
        except StorageError as error:
            end_process(StorageError(f"stopped by {reason}, and the last save failed: {error}"))
        except BaseException as error:  # noqa: BLE001 - in this thread nobody else would see it
            if not is_needed:
                end_process(error)
            # The step may still end; if it doesn't, the launcher ends all, and the last checkpoint
            # is where the run goes on.
            text = f"the workers' parts don't come together: {error}"
            self._recording.note("checkpoint_failed", text)

    def _save_last(
        self,
        keeper: CheckpointKeeper,
        reason: str,
        model: Mapping[str, torch.Tensor] | None,
        optimizer: WholeOptimizer,
    ) -> None:
        """Writes the state, if there is a `model` that this start has trained; notes the stop.

        What is still being written comes first; nothing moves any more, so no copy is needed.

        Raises:
            StorageError: it could not be written, again and again.
        """
        self.drain()
        if model is not None:

            def write() -> Written:
                with self._saving:
                    found = self._whole(model, optimizer)
                    return write_timed(keeper.write, self._state, found)

            write_last(write, self._news)
        self._snapshots.remove()
        self._recording.stopped(reason)

    def drain(self) -> None:
        """Waits for the checkpoint that is being written, and tells of it."""
        self._tell(wait=True)
        self._news.note_failure()

    def __enter__(self) -> Self:
        """For `with`: what is being written at its end is written whole."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits for the checkpoint that is being written, unless all is to end at once."""
        if not isinstance(error, KeyboardInterrupt):
            try:
                self.drain()
            except ConfigError as second:  # a newer start has taken over
                if error is None:
                    raise
                error.add_note(f"(and a checkpoint was given up: {second})")
        # A worker that is done knows not that the others are: who takes snapshots removes them.
        if is_over(error) and (error is not None or self._snapshots.held is not None):
            self._snapshots.remove()
