"""A step of a recorded run once more, on this device, held against the record bit for bit.

The run's own loop walks there from the newest checkpoint before it, in place of a training, with
nobody writing: so a walk is the run, whatever decides on the way. Nothing in the run's folder is
changed, and its lock is not taken.
"""

import json
import math
import traceback
from bdb import BdbQuit
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.assembly import Assembly
from distrain.coordinator.checkpointing import take_up
from distrain.coordinator.environment import changes, numerics_fingerprint
from distrain.coordinator.event_log import inspected
from distrain.coordinator.observers import finite_or_none
from distrain.coordinator.recording import Recording
from distrain.coordinator.return_point import ReturnPoints
from distrain.coordinator.run_folder import identity_changes
from distrain.coordinator.run_layout import DONE, ENVIRONMENT, EVENTS, FAILED, STATUS
from distrain.coordinator.run_status import RunStatus, read_status
from distrain.coordinator.saving import Saver
from distrain.coordinator.stops import StopAskedError
from distrain.coordinator.stored_checkpoints import store_of_run
from distrain.errors import ConfigError, ExitCode, NonFiniteError, UsageError, is_for_the_user
from distrain.micro_batch import columns_of
from distrain.practice.activation_memory import activation_bytes
from distrain.practice.inspection import Inspection
from distrain.practice.micro_batch_watch import StepWatch, post_mortem
from distrain.practice.replayed import Failure, MicroBatch, Replayed
from distrain.practice.walk import (
    NUMBERS,
    Listener,
    check_history,
    checkpoint_before,
    numbers_of,
    recorded_steps,
    walk_lines,
)
from distrain.train import TrainingLoop


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Attributes:
        folder: The run's.
        step: Counted from 1; None for the one that the run has failed in.
        micro_batch: The one to look at, counted from 0.
        debugger: Whether to open it: before that micro-batch, or where the step fails.
        tell: Is given what a person has to know before the walk, line by line.
    """

    folder: Path
    step: int | None = None
    micro_batch: int | None = None
    debugger: bool = False
    tell: Callable[[str], None] = lambda _: None


class ReplayedError(BaseException):
    """Ends the program whose training was to be replaced: that of a script goes no further."""

    def __init__(self, replayed: Replayed) -> None:
        """What came out."""
        super().__init__("the replay is done")
        self.replayed = replayed


_asked: ContextVar[Request | None] = ContextVar("replay", default=None)


@contextmanager
def replaying(request: Request) -> Iterator[None]:
    """Within, `Trainer.fit` of the run replays in place of training, and raises `ReplayedError`."""
    token = _asked.set(request)
    try:
        yield
    finally:
        _asked.reset(token)


def asked_of(folder: str | Path | None) -> Request | None:
    """What is asked for of the run in a folder, if it is; a finished one may be loaded on the way.

    Raises:
        UsageError: another run would be trained.
    """
    request = _asked.get()
    if request is None or folder is None:
        return None
    if Path(folder).resolve() == request.folder.resolve():
        return request
    if (Path(folder) / STATUS).is_file() and read_status(Path(folder)).state == DONE:
        return None
    raise UsageError(
        f"{request.folder} is to be replayed, and the script would train {folder} first, which is "
        "not finished: give the arguments that it was started with"
    )


class Replay:
    """A replay of one run by its parts."""

    def __init__(self, request: Request, model: torch.nn.Module, parts: Assembly) -> None:
        """Checks that the workers are one."""
        if parts.world.size > 1:
            raise UsageError(
                f"a replay works in one process, and WORLD_SIZE is {parts.world.size}: start it "
                "without torchrun or its kin"
            )
        self._request, self._model, self._parts = request, model, parts
        self._status = read_status(request.folder)

    def run(
        self, identity: Mapping[str, Any], epochs: int, *, prefetch: int, threads: int
    ) -> Replayed:
        """Walks to the step and does it.

        Raises:
            UsageError: there is no such step or micro-batch.
            ConfigError: the run is another one than that of the folder.
        """
        request, parts, folder = self._request, self._parts, self._request.folder
        changed = identity_changes(folder, identity)
        if changed:
            raise ConfigError(
                f"what would be replayed is another run than that in {folder}:\n  "
                + "\n  ".join(changed)
                + "\nReplay it with the code, the data and the settings that it was made with"
            )
        step = self._checked_step(epochs * parts.plan.steps_per_epoch)
        store = store_of_run(folder)
        start, contents, passed_over = checkpoint_before(store, step)
        epoch = parts.plan.batch(step - 1).epoch + 1
        request.tell(f"{folder}: step {step} of epoch {epoch}")
        for text in (*passed_over, *walk_lines(start, step, store, parts.rules.checkpoint)):
            request.tell(text)
        watch = StepWatch(
            step - 1,
            parts.step.rows,
            looked_at=request.micro_batch,
            stops_at=self._stops_at(step),
            stops_at_faults=request.debugger,
        )
        memory = self._activation_bytes(step)
        walk = Listener(recorded_steps(folder / EVENTS, start + 1, step))
        back_to = ReturnPoints(parts.rules.bad_numbers, self._model, parts.step)
        state, best = take_up(
            contents,
            self._model,
            parts.step.update.ownership,
            parts.step.average,
            parts.world,
            back_to,
        )
        check_history(folder / EVENTS, step, state.numbers)
        walk.steps_done = state.step
        parts.step.look_at(step, watch)
        recording = Recording(parts.world, None, {}, show=False, observers=[walk])
        loop = TrainingLoop(
            model=self._model,
            parts=parts,
            back_to=back_to,
            recording=recording,
            saver=Saver(parts.world, recording, None),
            # Without it the loop would go on to the epoch's end.
            raised=lambda: int(watch.began and step % parts.plan.steps_per_epoch > 0),
        )
        batches = partial(parts.batches, depth=prefetch, threads=threads)
        error = self._failure_of(partial(loop.run, state, best, step, batches), watch)
        if error is None and walk.steps_done < step:
            raise UsageError(
                f"the run in {folder} stops early after step {walk.steps_done}: there is no step "
                f"{step}"
            )
        return self._outcome(step, start, passed_over, memory, watch, walk, error)

    def _failure_of(self, walk: Callable[[], object], watch: StepWatch) -> Exception | None:
        """Walks; the error that the walk ends by, if it does."""
        try:
            with suppress(StopAskedError):
                walk()
        except BdbQuit:
            raise
        except Exception as failed:  # noqa: BLE001 - it is what is looked for
            if self._request.debugger and watch.forward is None and watch.backward is None:
                post_mortem(failed)
            return failed
        return None

    def _checked_step(self, last: int) -> int:
        step = self._request.step
        step = failing_step(self._status, self._request.folder) if step is None else step
        if not 1 <= step <= last:
            raise UsageError(f"--step is {step}; the run has the steps 1 to {last}")
        number, batch = self._request.micro_batch, self._parts.plan.batch(step - 1)
        if number is not None and not 0 <= number < batch.num_micro_batches:
            raise UsageError(
                f"--micro-batch is {number}; step {step} has the micro-batches 0 to "
                f"{batch.num_micro_batches - 1}"
            )
        return step

    def _stops_at(self, step: int) -> int | None:
        """Where the debugger opens; not before a step that will fail by itself."""
        request = self._request
        if not request.debugger or request.micro_batch is not None:
            return request.micro_batch if request.debugger else None
        return None if self._has_failed_in(step) else 0

    def _has_failed_in(self, step: int) -> bool:
        """Whether the record says so, of a fault of the program."""
        try:
            return step == failing_step(self._status, self._request.folder)
        except UsageError:
            return False

    def _activation_bytes(self, step: int) -> int | None:
        """Said before the walk, since it may be more than there is."""
        parts = self._parts
        if not parts.step.is_in_lockstep:
            return None
        batch = parts.plan.batch(step - 1)
        with parts.batches(range(step - 1, step), 1) as batches:
            columns = columns_of(batch, batch.owned(0, 1), 0, next(batches).columns)
        each = activation_bytes(self._model, parts.step.micro_batch_step, columns)
        total = each * batch.num_micro_batches
        self._request.tell(
            f"memory    {total / 1e6:,.1f} MB for gradients: synchronised batch norm has all\n"
            f"          {batch.num_micro_batches} micro-batches of a step in memory at once, of "
            f"{each / 1e6:,.1f} MB each"
        )
        return total

    def _outcome(
        self,
        step: int,
        start: int,
        passed_over: list[str],
        memory: int | None,
        watch: StepWatch,
        walk: Listener,
        error: Exception | None,
    ) -> Replayed:
        result = walk.result if walk.steps_done == step else None
        recorded = walk.recorded.get(step)
        numbers = None if result is None else numbers_of(result)
        failure = None if error is None else self._failure(error, walk.steps_done, watch)
        is_equal: bool | None = None
        if failure is not None:
            is_equal = failure.is_recorded
        elif self._has_failed_in(step):
            is_equal = False
        elif recorded is not None:
            is_equal = walk.first_difference is None
        looked = None if result is None else result.inspection
        batch = self._parts.plan.batch(step - 1)
        return Replayed(
            run=str(self._request.folder),
            step=step,
            epoch=batch.epoch + 1,
            start=start,
            passed_over=passed_over,
            activation_bytes=memory,
            first_difference=walk.first_difference,
            num_compared=walk.num_compared,
            recorded=None if recorded is None else {n: recorded.get(n) for n in NUMBERS},
            numbers=numbers,
            is_equal=is_equal,
            environment=self._environment_changes(),
            skipped=result is not None and result.skipped,
            parameters=None if looked is None else _norms(looked),
            micro_batches=self._micro_batches(step, watch),
            layers=watch.layers,
            gradients=watch.gradients,
            failure=failure,
        )

    def _micro_batches(self, step: int, watch: StepWatch) -> list[MicroBatch]:
        batch, number = self._parts.plan.batch(step - 1), self._request.micro_batch
        found = []
        for micro_batch in range(batch.num_micro_batches) if number is None else (number,):
            rows = self._parts.step.rows(batch, micro_batch)
            loss_sum, weight = watch.losses.get(micro_batch, (math.nan, 0.0))
            loss = loss_sum / weight if weight and math.isfinite(loss_sum) else None
            found.append(MicroBatch(micro_batch, rows.tolist(), self._labels(rows), loss))
        return found

    def _labels(self, rows: NDArray[np.int64]) -> list[Any] | None:
        """What the target says of some rows, by name where it has names; None for more than one."""
        train, name = self._parts.train, self._parts.step.target
        column = train.columns[name]
        if column.shape or column.is_ragged:
            return None
        values = np.zeros(len(rows), dtype=column.dtype)
        train.gather(name, rows, values)
        return [column.classes[value] if column.classes else value for value in values.tolist()]

    def _environment_changes(self) -> dict[str, tuple[Any, Any]]:
        path = self._request.folder / ENVIRONMENT
        if not path.is_file():
            return {}
        now = numerics_fingerprint(self._parts.world.device, torch.get_num_threads())
        return changes(json.loads(path.read_bytes()), now)

    def _failure(self, error: Exception, steps_done: int, watch: StepWatch) -> Failure:
        text = str(error) or type(error).__name__
        status, step = self._status, steps_done + 1
        is_recorded = status.state == FAILED and failing_step(status, self._request.folder) == step
        is_recorded &= text in status.reason or status.reason in text
        told = "" if is_for_the_user(error) else "".join(traceback.format_exception(error))
        micro_batch, first, nan = watch.failed_in, None, None
        at: tuple[int, ...] = ()
        if isinstance(error, NonFiniteError):
            text = f"the {error.what} is not finite"
            in_backward = error.what == "gradient" or watch.forward is None
            first = watch.backward if in_backward else watch.forward
            nan = None if in_backward or watch.forward_nan == first else watch.forward_nan
        rows = list(error.rows) if isinstance(error, NonFiniteError) else []
        if first is not None:
            micro_batch, at = first.micro_batch, first.samples
        if micro_batch is not None:
            batch = self._parts.plan.batch(watch.step)
            own = self._parts.step.rows(batch, micro_batch).tolist()
            rows = [own[place] for place in at] or own
        kind = type(error).__name__
        return Failure(step, kind, text, told, is_recorded, micro_batch, first, nan, rows)


def _norms(looked: Inspection) -> dict[str, dict[str, float | None]]:
    updates = zip(looked.names, map(finite_or_none, looked.update_norms), strict=True)
    return {**inspected(looked), "update_norm": dict(updates)}


def failing_step(status: RunStatus, folder: Path) -> int:
    """The step, counted from 1, that a run has failed in; its last where it failed after that.

    Raises:
        UsageError: it has not failed by its program.
    """
    if status.state == FAILED and status.exit_code == ExitCode.FAULT:
        return min(status.step + 1, max(status.steps, 1))
    raise UsageError(
        f"the run in {folder} is {status.state} and has not failed in a step: give --step, from 1 "
        f"to {max(status.step, 1)}"
    )
