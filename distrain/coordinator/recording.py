"""A run's outside: rank 0 holds the folder and tells the observers; the others do nothing."""

import json
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import torch

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint import newest_checkpoint
from distrain.coordinator.checkpointing import (
    Checkpoint,
    CheckpointKeeper,
    contents,
    is_scheduled,
    take_up,
)
from distrain.coordinator.environment import environment_of
from distrain.coordinator.event_log import EventLog, recorded_epochs
from distrain.coordinator.history import History
from distrain.coordinator.observers import (
    Ending,
    EpochRecord,
    Observer,
    finite_or_none,
)
from distrain.coordinator.progress import progress_observer, say, score_lines, summary_lines
from distrain.coordinator.run_folder import RunFolder, load_model
from distrain.coordinator.run_layout import DONE, EVENTS, FAILED, RESULT, STOPPED
from distrain.coordinator.run_state import RunState
from distrain.coordinator.stops import StopAskedError, StoppedError, end_process, reason_of
from distrain.coordinator.tensorboard_log import TensorBoardLog
from distrain.errors import ConfigError, ExitCode, NonFiniteError, exit_code_of
from distrain.job_file import checkpoint_tables
from distrain.learn.averaging import AveragedWeights
from distrain.parallel.communicator import broadcast_bytes
from distrain.parallel.ownership import OptimizerState, Ownership
from distrain.parallel.replicas import refuse_differences
from distrain.parallel.split import BatchPlan
from distrain.parallel.world import World
from distrain.step import StepResult, TrainingStep

AT_REST_S = 5.0
"""So long an update may take that stands between a stop and the last save."""

LAST_SAVE_PAUSES_S = (0.2, 1.0)
"""Before a run that is asked to stop tries again to save."""


class Recording:
    """Everything that a run writes and shows. All methods may be called on every rank."""

    def __init__(
        self, world: World, folder: RunFolder | None, job: Mapping[str, Any], *, show: bool
    ) -> None:
        """`folder` is None for a run without one, and on every rank but 0."""
        self._world, self._folder, self._job, self._show = world, folder, job, show
        self._policy: Checkpoint | None = None
        self._observers: list[Observer] = []
        self._keeper: CheckpointKeeper | None = None
        self._damaged: list[str] = []
        self._state, self._planned, self._steps = RunState(), 0, 0
        self._best: Mapping[str, torch.Tensor] = {}
        self._average: AveragedWeights | None = None
        self._taken_up_at = 0
        self._writing = threading.Lock()
        self._began = time.monotonic()

    @property
    def steps_done(self) -> int:
        """Steps of the run that are behind, as far as has been told."""
        return self._state.step

    def is_finished(self, epochs: int) -> bool:
        """Whether the folder holds this run's result already; the same answer on every rank.

        Raises:
            ConfigError: it does, with another number of epochs; or the workers differ in it.
        """
        refuse_differences({"epochs": epochs}, self._world)
        status = self._folder.status() if self._folder else {}
        done = status.get("epochs", 0) if status.get("state") == DONE else 0
        if done and done != epochs:
            assert self._folder is not None
            raise ConfigError(
                f"the run in {self._folder.path} is finished, with {done} epochs and not {epochs}: "
                "name another folder with --run.dir, or start with --fresh, which moves it aside"
            )
        answer = torch.tensor([int(bool(done))], device=self._world.device)
        self._world.communicator.broadcast(answer)
        return bool(answer.item())

    def load_result(self, model: torch.nn.Module) -> History:
        """The result of a finished run, its weights and its history on every rank."""
        told = b""
        epochs: tuple[EpochRecord, ...] = ()
        best: int | None = None
        result: Path | None = None
        if self._folder:
            result = self._folder.path / RESULT
            load_model(model, result)
            epochs = recorded_epochs(self._folder.path / EVENTS)
            best = self._folder.status().get("best_epoch")
            told = json.dumps([best, RunState(epochs=epochs).to_json()]).encode()
            if self._show:
                scores = score_lines(epochs[-1]) if epochs else []
                lines = ["this run is finished already", *scores, f"result: {result}"]
                say("\n".join(lines))
        for tensor in model.state_dict().values():
            self._world.communicator.broadcast(tensor)
        content = broadcast_bytes(told, self._world.communicator, self._world.device)
        if self._folder is None:
            best, state = json.loads(content)
            epochs = RunState.from_json(state).epochs
        return History(epochs, best, result)

    def take_up(
        self, model: torch.nn.Module, step: TrainingStep, last_step: int
    ) -> tuple[RunState, dict[str, torch.Tensor]]:
        """Sets model, average and optimizer as the newest good checkpoint says, on every rank.

        Returns:
            The run's state, that of a run's begin where there is no checkpoint, and the best
            weights so far.

        Raises:
            StorageError: there are checkpoints, and none is good.
            ConfigError: the run has gone beyond `last_step`.
        """
        newest = newest_checkpoint(self._folder.checkpoints) if self._folder else None
        if newest is not None and newest.step > last_step:
            raise ConfigError(
                f"the run stands after step {newest.step}, and {last_step} steps are asked for: "
                "give more epochs, name another folder with --run.dir, or start with --fresh, "
                "which moves it aside"
            )
        found = None if newest is None else newest.contents
        self._damaged = [] if newest is None else newest.damaged
        self._average, ownership = step.average, step.update.ownership
        self._state, best = take_up(found, model, ownership, self._average, self._world)
        self._best, self._taken_up_at = best, self._state.step
        return self._state, best

    def begin(self, plan: BatchPlan, epochs: int, policy: Checkpoint | None) -> None:
        """Writes what the run is, and tells the observers."""
        self._planned, self._steps = epochs, epochs * plan.steps_per_epoch
        step, self._policy = self._state.step, policy
        before = self._folder.environment() if self._folder and step else {}
        environment, notes = environment_of(self._world, before)
        if self._world.rank == 0:
            if self._folder:
                job = self._job or ({} if policy is None else checkpoint_tables(policy))
                self._folder.begin(job, environment, epochs, self._steps, goes_on=step > 0)
                check = self._folder.check_generation
                self._observers.append(EventLog(self._folder.path, step, check))
                self._observers.append(TensorBoardLog(self._folder.path, step))
                if policy is not None:
                    self._keeper = CheckpointKeeper(policy, self._folder.checkpoints, check)
            if self._show:
                self._observers.append(progress_observer())
        for observer in self._observers:
            observer.begin(plan, epochs)
        passed_over = [f"a damaged checkpoint is passed over: {text}" for text in self._damaged]
        for event, text in (*(("damaged", text) for text in passed_over), *notes):
            self._note(event, text)
        if step:
            self._note("resume", f"going on after step {step}", step=step)

    def _note(self, event: str, text: str, **fields: Any) -> None:
        for observer in self._observers:
            observer.note(event, text, **fields)

    def step(self, result: StepResult, state: RunState) -> None:
        """A step was done, and `state` is the run's after it."""
        self._state = state
        for observer in self._observers:
            observer.step(result)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch was done."""
        for observer in self._observers:
            observer.epoch(record)

    def state(
        self,
        state: RunState,
        model: torch.nn.Module,
        training_step: TrainingStep,
        best: Mapping[str, torch.Tensor],
        *,
        asked: bool,
    ) -> None:
        """A step is done with all that follows from it; its state is written if that is due.

        `asked`: rank 0 has said with the step that its clock wants a checkpoint. One that can't be
        written is said so, and the run goes on: it is tried again soon.

        Raises:
            DivergedError: the workers no longer hold one state, so rank 0's is not to be kept.
        """
        with self._writing:
            self._state, self._best = state, best
        if self._policy is None or not (asked or is_scheduled(self._policy, state)):
            return
        training_step.check.compare(state.step)
        optimizer = self._optimizer_state(training_step.update.ownership)
        if self._keeper is None:
            return
        try:
            self._write(self._keeper, model.state_dict(), optimizer)
        except StorageError as error:
            self._note("checkpoint_failed", f"no checkpoint at step {state.step}: {error}")

    def asks_to_save(self) -> bool:
        """Whether this worker's clock wants a checkpoint: all are told with the next step."""
        return self._keeper is not None and self._keeper.is_time()

    def _optimizer_state(self, ownership: Ownership) -> OptimizerState:
        """Where it is spread over the workers, all of them are needed to bring it together."""
        if self._keeper is not None or ownership.is_shared:
            return ownership.optimizer_state()
        return {}, {}

    def _write(
        self,
        keeper: CheckpointKeeper,
        model: Mapping[str, torch.Tensor],
        optimizer: OptimizerState,
    ) -> None:
        """Writes the state as it stands; one thread at a time."""
        began = time.monotonic()
        with self._writing:
            state = self._state
            average = {} if self._average is None else self._average.state()
            folder = keeper.write(state, contents(state, model, optimizer, self._best, average))
        seconds = round(time.monotonic() - began, 4)
        self._note("checkpoint", f"wrote {folder.name}", step=state.step, seconds=seconds)

    def stop(self, asked: StopAskedError, model: torch.nn.Module, ownership: Ownership) -> NoReturn:
        """Saves the state as it stands, and ends the run; called on every rank.

        Rank 0 writes, and tells the others by a closing exchange how that went: none ends before.

        Raises:
            StoppedError: all is saved.
            StorageError: it could not be; the last checkpoint stands.
        """
        reason = str(reason_of(asked.flags))
        trouble = ""
        changed = self._policy is not None and self._state.step > self._taken_up_at
        optimizer = self._optimizer_state(ownership) if changed else ({}, {})
        if self._keeper is not None:
            try:
                state = model.state_dict() if changed else None
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
                optimizer: OptimizerState = {}, {}
                if self._state.step > self._taken_up_at:
                    rest = training_step.standing.at_rest(lambda: self._state.step, AT_REST_S)
                    model = stack.enter_context(rest)
                    optimizer = ownership.optimizer_state(apart=True)
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
            self._note("checkpoint_failed", f"the workers' parts don't come together: {error}")

    def _save_last(
        self,
        keeper: CheckpointKeeper,
        reason: str,
        model: Mapping[str, torch.Tensor] | None,
        optimizer: OptimizerState,
    ) -> None:
        """Writes the state, if there is a `model` that this start has trained; notes the stop."""
        step = self._state.step
        if model is not None:
            for pause_s in LAST_SAVE_PAUSES_S:
                try:
                    self._write(keeper, model, optimizer)
                    break
                except StorageError as error:
                    self._note("checkpoint_failed", f"no checkpoint at step {step}: {error}")
                    time.sleep(pause_s)
            else:
                self._write(keeper, model, optimizer)
        self._end(Ending(f"stopped by {reason}", ExitCode.STOPPED))
        self._write_status(STOPPED, f"stopped by {reason}", ExitCode.STOPPED)
        if self._show:
            say(f"stopped by {reason}: all is saved up to step {step}")

    def finish(self, model: torch.nn.Module, *, restored: bool) -> History:
        """Writes the result, and says how the run ended.

        `restored` says that the model has the weights of the best epoch, and not of the last.
        """
        best = self._state.progress.best_epoch or None
        epochs = self._state.epochs
        reason = "stopped early" if len(epochs) < self._planned else "finished"
        result = self._folder.write_result(model) if self._folder else None
        self._end(Ending(reason, ExitCode.DONE, best))
        if self._folder:
            scores = _json_scores(epochs[-1].scores)
            self._write_status(DONE, reason, ExitCode.DONE, best_epoch=best, scores=scores)
        if self._world.rank == 0 and self._show:
            seconds, workers = time.monotonic() - self._began, self._world.size
            lines = summary_lines(reason, epochs, best, seconds, workers, restored=restored)
            say("\n".join([*lines, f"result: {result}"] if result else lines))
        return History(epochs, best, result)

    def fail(self, error: BaseException) -> None:
        """Notes the error that ends the run, as far as the folder can still be written."""
        code = exit_code_of(error)
        details = {"rows": error.rows} if isinstance(error, NonFiniteError) else {}
        self._end(Ending(str(error) or type(error).__name__, code, details=details))
        if self._planned:
            self._write_status(FAILED, str(error) or type(error).__name__, code)

    def _write_status(self, state: str, reason: str, code: ExitCode, **more: Any) -> None:
        if self._folder:
            self._folder.write_status(
                state,
                reason=reason,
                exit_code=int(code),
                epochs=self._planned,
                epoch=len(self._state.epochs),
                step=self._state.step,
                steps=self._steps,
                **more,
            )

    def _end(self, ending: Ending) -> None:
        """Tells all observers, also where one of them can't write any more."""
        observers, self._observers = self._observers, []
        with ExitStack() as stack:
            for observer in reversed(observers):
                stack.callback(observer.end, ending)


def _json_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite_or_none(score) for name, score in scores.items()}
