"""A run's outside: rank 0 holds the folder and tells the observers; the others do nothing."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint import newest_checkpoint
from distrain.coordinator.checkpointing import (
    Checkpoint,
    CheckpointKeeper,
    contents,
    take_up,
)
from distrain.coordinator.observers import (
    EVENTS,
    Ending,
    EpochRecord,
    EventLog,
    Observer,
    TensorBoardLog,
    finite_or_none,
)
from distrain.coordinator.progress import progress_observer, say, score_lines
from distrain.coordinator.run_folder import (
    DONE,
    FAILED,
    RESULT,
    RunFolder,
    load_model,
    numerics_fingerprint,
)
from distrain.coordinator.run_state import RunState
from distrain.errors import ConfigError, ExitCode, NonFiniteError, exit_code_of
from distrain.parallel.communicator import broadcast_bytes
from distrain.parallel.split import BatchPlan
from distrain.parallel.world import World
from distrain.step import StepResult


@dataclass(frozen=True)
class History:
    """What a run brought.

    Attributes:
        epochs: A record each.
        best_epoch: By early stopping's score, counted from 1; None without early stopping.
        result: The file with the final weights; None for a run without a folder.
    """

    epochs: tuple[EpochRecord, ...]
    best_epoch: int | None = None
    result: Path | None = None

    def __getitem__(self, name: str) -> list[float]:
        """A score by epoch: `history["val_loss"]`.

        Raises:
            KeyError: this run has not measured it; names those that it has.
        """
        if self.epochs and name not in self.epochs[0].scores:
            raise KeyError(f"{name!r}; this run has measured {', '.join(self.epochs[0].scores)}")
        return [record.scores[name] for record in self.epochs]


class Recording:
    """Everything that a run writes and shows. All methods may be called on every rank."""

    def __init__(
        self, world: World, folder: RunFolder | None, job: Mapping[str, Any], *, show: bool
    ) -> None:
        """`folder` is None for a run without one, and on every rank but 0."""
        self._world, self._folder, self._job, self._show = world, folder, job, show
        self._observers: list[Observer] = []
        self._keeper: CheckpointKeeper | None = None
        self._damaged: list[str] = []
        self._state, self._planned = RunState(), 0
        self._began = time.monotonic()

    def is_finished(self, epochs: int) -> bool:
        """Whether the folder holds this run's result already; the same answer on every rank.

        Raises:
            ConfigError: it does, with another number of epochs.
        """
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
            epochs = _recorded_epochs(self._folder.path / EVENTS)
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
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, last_step: int
    ) -> tuple[RunState, dict[str, torch.Tensor]]:
        """Sets model and optimizer as the newest good checkpoint says, on every rank.

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
        self._state, best = take_up(found, model, optimizer, self._world)
        return self._state, best

    def begin(self, plan: BatchPlan, epochs: int, policy: Checkpoint | None) -> None:
        """Writes what the run is, and tells the observers."""
        self._planned = epochs
        step = self._state.step
        if self._world.rank == 0:
            if self._folder:
                environment = numerics_fingerprint(self._world.device, torch.get_num_threads())
                environment["world_size"] = self._world.size
                self._folder.begin(self._job, environment, epochs, goes_on=step > 0)
                self._observers.append(EventLog(self._folder.path, step))
                self._observers.append(TensorBoardLog(self._folder.path, step))
                if policy is not None:
                    self._keeper = CheckpointKeeper(policy, self._folder.checkpoints)
            if self._show:
                self._observers.append(progress_observer())
        for observer in self._observers:
            observer.begin(plan, epochs)
        for text in self._damaged:
            self._note("damaged", f"a damaged checkpoint is passed over: {text}")
        if step:
            self._note("resume", f"going on after step {step}", step=step)

    def _note(self, event: str, text: str, **fields: Any) -> None:
        for observer in self._observers:
            observer.note(event, text, **fields)

    def step(self, result: StepResult) -> None:
        """A step was done."""
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
        optimizer: torch.optim.Optimizer,
        best: Mapping[str, torch.Tensor],
    ) -> None:
        """A step is done with all that follows from it; its state is written if that is due.

        A checkpoint that can't be written is said so, and the run goes on: it is tried again when
        the next one is due.
        """
        self._state = state
        if self._keeper is None or not self._keeper.is_due(state):
            return
        began = time.monotonic()
        try:
            folder = self._keeper.write(state, contents(state, model, optimizer, best))
        except StorageError as error:
            self._note("checkpoint_failed", f"no checkpoint at step {state.step}: {error}")
            return
        seconds = round(time.monotonic() - began, 4)
        self._note("checkpoint", f"wrote {folder.name}", step=state.step, seconds=seconds)

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
            self._folder.write_status(
                DONE,
                reason=reason,
                exit_code=int(ExitCode.DONE),
                epochs=self._planned,
                epoch=len(epochs),
                step=self._state.step,
                best_epoch=best,
                scores=_json_scores(epochs[-1].scores),
            )
        if self._world.rank == 0 and self._show:
            self._say_summary(reason, best, result, restored=restored)
        return History(epochs, best, result)

    def fail(self, error: BaseException) -> None:
        """Notes the error that ends the run, as far as the folder can still be written."""
        code = exit_code_of(error)
        details = {"rows": error.rows} if isinstance(error, NonFiniteError) else {}
        self._end(Ending(str(error) or type(error).__name__, code, details=details))
        if self._folder and self._planned:
            self._folder.write_status(
                FAILED,
                reason=str(error) or type(error).__name__,
                exit_code=int(code),
                epochs=self._planned,
                epoch=len(self._state.epochs),
                step=self._state.step,
            )

    def _end(self, ending: Ending) -> None:
        """Tells all observers, also where one of them can't write any more."""
        observers, self._observers = self._observers, []
        with ExitStack() as stack:
            for observer in reversed(observers):
                stack.callback(observer.end, ending)

    def _say_summary(
        self, reason: str, best: int | None, result: Path | None, *, restored: bool
    ) -> None:
        last = self._state.epochs[-1]
        seconds = time.monotonic() - self._began
        workers = "1 worker" if self._world.size == 1 else f"{self._world.size} workers"
        lines = [
            f"{reason} after epoch {last.epoch}, {last.step} steps, {seconds:.1f} s, {workers}",
            *score_lines(last),
        ]
        if best is not None and best != last.epoch:
            lines.append(f"best was epoch {best}" + (", whose weights are restored" * restored))
            lines += score_lines(self._state.epochs[best - 1])
        if result is not None:
            lines.append(f"result: {result}")
        say("\n".join(lines))


@contextmanager
def open_recording(
    world: World,
    folder: str | Path | None,
    identity: Mapping[str, Any],
    job: Mapping[str, Any],
    *,
    fresh: bool,
    show: bool,
) -> Iterator[Recording]:
    """A run's recording; an error that leaves the block is noted in the folder.

    Raises:
        StorageError, ConfigError: the folder can't be used; see `RunFolder`.
    """
    with ExitStack() as stack:
        held: RunFolder | None = None
        if world.rank == 0 and folder is not None:
            held = stack.enter_context(RunFolder(folder, identity, fresh=fresh))
        recording = Recording(world, held, job, show=show)
        try:
            yield recording
        except BaseException as error:
            _note(recording, error)
            raise


def _note(recording: Recording, error: BaseException) -> None:
    try:
        recording.fail(error)
    except StorageError as second:
        # The first error is the one to report; that it could not be noted goes with it.
        error.add_note(f"(and this could not be noted in the run's folder: {second})")


def _recorded_epochs(path: Path) -> tuple[EpochRecord, ...]:
    known = ("event", "epoch", "step", "seconds", "samples_per_s", "time")
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return tuple(
        EpochRecord(
            event["epoch"],
            event["step"],
            {
                name: math.nan if score is None else score
                for name, score in event.items()
                if name not in known
            },
            event["seconds"],
            event["samples_per_s"],
        )
        for event in events
        if event["event"] == "epoch"
    )


def _json_scores(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite_or_none(score) for name, score in scores.items()}
