"""A run's outside: rank 0 holds the folder and tells the observers; the others do nothing."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from distrain.coordinator.environment import environment_of
from distrain.coordinator.event_log import EventLog, recorded_epochs
from distrain.coordinator.history import History
from distrain.coordinator.log_tail import last_step
from distrain.coordinator.observers import (
    Ending,
    EpochRecord,
    Observer,
    bad_fields,
    finite_or_none,
    went_back_text,
)
from distrain.coordinator.progress import progress_observer, say, summary_lines
from distrain.coordinator.prometheus import PrometheusEndpoint
from distrain.coordinator.pulse import told_hangs
from distrain.coordinator.restart_note import told_restart
from distrain.coordinator.run_folder import RunFolder, load_model
from distrain.coordinator.run_layout import DONE, EVENTS, FAILED, RESULT, STOPPED
from distrain.coordinator.run_state import RunState, record_from_json
from distrain.coordinator.score_lines import INDENT, score_lines
from distrain.coordinator.slow_rank_notes import SlowRankNotes, hosts_of
from distrain.coordinator.stops import pulse_folder, tell_of_first_step
from distrain.coordinator.taking_up import Found
from distrain.coordinator.tensorboard_log import TensorBoardLog
from distrain.errors import BadStepError, ConfigError, ExitCode, HangError, exit_code_of
from distrain.parallel.communicator import broadcast_bytes
from distrain.parallel.replicas import refuse_differences
from distrain.parallel.split import BatchPlan
from distrain.parallel.world import World
from distrain.step import StepResult


class Recording:
    """What a run tells of itself. All methods may be called on every rank.

    Attributes:
        folder: The run's; None for a run without one, and on every rank but 0.
    """

    def __init__(
        self,
        world: World,
        folder: RunFolder | None,
        job: Mapping[str, Any],
        *,
        show: bool,
        prometheus_port: int | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Tells nobody but `observers` before `begin`, which adds those of the folder."""
        self.folder, self._world, self._job, self._show = folder, world, job, show
        self._prometheus_port = prometheus_port
        self._observers = list(observers)
        self._has_stepped = False
        self._state, self._planned, self._steps = RunState(), 0, 0
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
        status = self.folder.status() if self.folder else {}
        done = status.get("epochs", 0) if status.get("state") == DONE else 0
        if done and done != epochs:
            assert self.folder is not None
            raise ConfigError(
                f"the run in {self.folder.path} is finished, with {done} epochs and not {epochs}: "
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
        if self.folder:
            result = self.folder.path / RESULT
            load_model(model, result)
            epochs = recorded_epochs(self.folder.path / EVENTS)
            best = self.folder.status().get("best_epoch")
            told = json.dumps([best, [vars(record) for record in epochs]]).encode()
            if self._show:
                last = epochs[-1].scores if epochs else {}
                scores = [INDENT + line for line in score_lines(last)]
                lines = ["this run is finished already", *scores, f"result: {result}"]
                say("\n".join(lines))
        for tensor in model.state_dict().values():
            self._world.communicator.broadcast(tensor)
        content = broadcast_bytes(told, self._world.communicator, self._world.device)
        if self.folder is None:
            best, records = json.loads(content)
            epochs = tuple(record_from_json(record) for record in records)
        return History(epochs, best, result)

    def begin(self, plan: BatchPlan, epochs: int, state: RunState, found: Found) -> None:
        """Writes what the run is, and tells the observers; `state` is where it stands."""
        self._planned, self._steps = epochs, epochs * plan.steps_per_epoch
        self._state, step, times_back = state, state.step, state.numbers.times_back
        goes_on = step > 0 or times_back > 0
        before = self.folder.environment() if self.folder and goes_on else {}
        environment, notes = environment_of(self._world, before)
        hosts = hosts_of(self._world)
        again = 0
        if self._world.rank == 0:
            if self.folder:
                self.folder.begin(self._job, environment, epochs, self._steps, goes_on=goes_on)
                again = max(0, last_step(self.folder.path / EVENTS) - step)
            notes += self._add_observers(state, hosts, goes_on=goes_on)
        for observer in self._observers:
            observer.begin(plan, epochs)
        passed_over = [f"checkpoints are passed over: {text}" for text in found.damaged]
        notes = [*(("damaged", text) for text in passed_over), *notes]
        self._tell_of_start(step, notes)
        if goes_on:
            source = "memory" if found.is_from_memory else "disk"
            text = f"going on after step {step}" + ", from memory" * found.is_from_memory
            if again:
                text += f"; {again} step{'s' * (again > 1)} to be done again"
            facts = {"source": source, "workers": self._world.size, "steps_again": again}
            self.note("resume", text, step=step, **facts)

    def _add_observers(
        self, state: RunState, hosts: Sequence[str], *, goes_on: bool
    ) -> list[tuple[str, str]]:
        """Those of the folder, the terminal and whoever asks; what is to be said of them."""
        notes: list[tuple[str, str]] = []
        if self.folder:
            step, epochs = state.step, len(state.epochs)
            back, check = state.numbers.times_back, self.folder.check_generation
            path = self.folder.path
            self._observers += (
                EventLog(path, step, check, times_back=back, epochs=epochs),
                TensorBoardLog(path, step if goes_on else None),
            )
        self._observers.append(SlowRankNotes(self.note, hosts))
        if self._show:
            self._observers.append(progress_observer())
        if self._prometheus_port is not None:
            endpoint = PrometheusEndpoint(self._prometheus_port)
            self._observers.append(endpoint)
            notes.append(("prometheus", f"numbers for Prometheus at {endpoint.url}"))
        return notes

    def _tell_of_start(self, step: int, notes: Sequence[tuple[str, str]]) -> None:
        """Why the launcher has started the workers again, if it has, and what else there is."""
        left_in = pulse_folder() if self._world.rank == 0 else None
        if restart := told_restart(left_in):
            self.note("restart", step=step, **restart)
        for hang in told_hangs(left_in):
            self.note("hang", **hang)
        for event, text in notes:
            self.note(event, text)

    def note(self, event: str, text: str, **fields: Any) -> None:
        """Something else happened: `text` says it to a person, `fields` to a program."""
        for observer in self._observers:
            observer.note(event, text, **fields)

    def step(self, result: StepResult, state: RunState) -> None:
        """A step was done, and `state` is the run's after it."""
        if not self._has_stepped:
            tell_of_first_step()
            self._has_stepped = True
        self._state = state
        for observer in self._observers:
            observer.step(result)

    def epoch(self, record: EpochRecord) -> None:
        """An epoch was done."""
        for observer in self._observers:
            observer.epoch(record)

    def reached(self, state: RunState) -> None:
        """A step is done with all that follows from it."""
        self._state = state

    def went_back(self, bad: BadStepError, state: RunState) -> None:
        """The run goes on from an earlier state."""
        self._state, numbers = state, state.numbers
        left_out = max(0, numbers.pass_until - state.step)
        self.note(
            "go_back",
            went_back_text(bad, state.step, left_out, numbers.lr_factor),
            step=state.step,
            times_back=numbers.times_back,
            lr_factor=numbers.lr_factor,
            steps_left_out=left_out,
            **bad_fields(bad),
        )

    def stopped(self, reason: str) -> None:
        """The run was asked to stop, and all is saved."""
        ending = Ending(f"stopped by {reason}", ExitCode.STOPPED, details=self._where())
        self._end(ending)
        self._write_status(STOPPED, ending.reason, ExitCode.STOPPED)
        if self._show:
            say(f"{ending.reason}: all is saved up to step {self._state.step}")

    def finish(self, model: torch.nn.Module, *, restored: bool) -> History:
        """Writes the result, and says how the run ended.

        `restored` says that the model has the weights of the best epoch, and not of the last.
        """
        best = self._state.progress.best_epoch or None
        epochs = self._state.epochs
        reason = "stopped early" if len(epochs) < self._planned else "finished"
        result = self.folder.write_result(model) if self.folder else None
        self._end(Ending(reason, ExitCode.DONE, best, self._where()))
        if self.folder:
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
        details = bad_fields(error) if isinstance(error, BadStepError) else {}
        if isinstance(error, HangError):
            details = error.details
        details = {**self._where(), **details}
        self._end(Ending(str(error) or type(error).__name__, code, details=details))
        if self._planned:
            self._write_status(FAILED, str(error) or type(error).__name__, code)

    def _where(self) -> dict[str, Any]:
        """So that the log keeps how a start has ended where another goes on from there."""
        return {"step": self._state.step}

    def _write_status(self, state: str, reason: str, code: ExitCode, **more: Any) -> None:
        if self.folder:
            self.folder.write_status(
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
