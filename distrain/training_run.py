"""A run on one worker: taken up where it stands, trained to its end or until it is stopped."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from distrain.assembly import Assembly
from distrain.checks import check_at_least
from distrain.coordinator.hang_guard import Guard, guarded
from distrain.coordinator.history import History
from distrain.coordinator.phases import Phase
from distrain.coordinator.pulse import this_process
from distrain.coordinator.recorded_run import open_recording
from distrain.coordinator.recording import Recording
from distrain.coordinator.return_point import ReturnPoints
from distrain.coordinator.saving import Saver
from distrain.coordinator.stops import WATCHED, StopAskedError, StopWatch, handlers_as_before
from distrain.job_file import checkpoint_tables
from distrain.train import TrainingLoop


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run leaves, and what may end it; `Trainer` says what each of them is.

    Attributes:
        folder: None leaves no files.
        job: Tables of a job file.
    """

    folder: str | Path | None = None
    fresh: bool = False
    show: bool = True
    job: Mapping[str, Any] = field(default_factory=dict)
    max_time_s: float | None = None
    grace_s: float = 30.0
    prometheus_port: int | None = None
    hang_timeout_s: float | None = None

    def __post_init__(self) -> None:
        """Checks a range."""
        check_at_least("hang_timeout_s", self.hang_timeout_s, 0)


class TrainingRun:
    """The parts of a training, and what is to become of it."""

    def __init__(self, model: torch.nn.Module, parts: Assembly, settings: RunSettings) -> None:
        """`model` holds the result in the end."""
        self._model, self._parts, self._settings = model, parts, settings
        self._back_to = ReturnPoints(parts.rules.bad_numbers, model, parts.step)

    def to_end(
        self, identity: Mapping[str, Any], epochs: int, *, prefetch: int, threads: int
    ) -> History:
        """Trains what is left of so many epochs; a run that has ended already is loaded.

        Raises:
            StoppedError: the run was asked to stop, and everything is saved.
        """
        parts, settings = self._parts, self._settings
        last = epochs * parts.plan.steps_per_epoch
        parts.step.average.check(last)
        with ExitStack() as stack:
            stack.enter_context(handlers_as_before())
            recording = stack.enter_context(
                open_recording(
                    parts.world,
                    settings.folder,
                    identity,
                    self._tables(),
                    fresh=settings.fresh,
                    show=settings.show,
                    prometheus_port=settings.prometheus_port,
                )
            )
            guard = stack.enter_context(self._guarded(recording))
            if recording.is_finished(epochs):
                return recording.load_result(self._model)
            rules = parts.rules
            saver = stack.enter_context(
                Saver(parts.world, recording, rules.checkpoint, settings.folder)
            )
            state, best, found = saver.take_up(self._model, parts.step, last, self._back_to)
            rules.bad_numbers.check(state.numbers)
            recording.begin(parts.plan, epochs, state, found)
            saver.begin()
            watch = stack.enter_context(self._stop_watch(saver, guard))
            loop = TrainingLoop(
                model=self._model,
                parts=parts,
                back_to=self._back_to,
                recording=recording,
                saver=saver,
                raised=lambda: watch.flag,
            )
            batches = partial(parts.batches, depth=prefetch, threads=threads)
            try:
                best = loop.run(state, best, last, batches)
            except StopAskedError as asked:
                watch.handled()
                parts.world.phases.enter(Phase.CHECKPOINT)
                saver.stop(asked, self._model)
            watch.handled()
            parts.world.phases.enter(Phase.ENDING)
            saver.drain()
            if best:
                self._model.load_state_dict(best)
            else:
                parts.step.average.exchange()
            return recording.finish(self._model, restored=bool(best))

    def _tables(self) -> Mapping[str, Any]:
        """What the run's `job.toml` is to say: of one made by a script, what tools go by."""
        policy = self._parts.rules.checkpoint
        return self._settings.job or ({} if policy is None else checkpoint_tables(policy))

    def _guarded(self, recording: Recording) -> AbstractContextManager[Guard]:
        """Finds out a worker that hangs."""
        world, settings = self._parts.world, self._settings
        limit_s = settings.hang_timeout_s or 0.0
        worker = this_process(world.rank, world.size, settings.folder, limit_s)
        return guarded(self._parts.world.phases, worker, recording.fail)

    def _stop_watch(self, saver: Saver, guard: Guard) -> StopWatch:
        """Watches for signals where there is something to save, on every rank alike."""

        def save_unfinished(reason: str) -> None:
            with guard.paused():
                saver.save_unfinished(reason, self._parts.step)

        return StopWatch(
            self._settings.grace_s,
            self._settings.max_time_s,
            save_unfinished,
            signals=WATCHED if self._parts.rules.checkpoint is not None else (),
        )
