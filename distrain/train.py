"""The loop."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from data_pipeline.batches import Batch
from distrain.assembly import Assembly
from distrain.bad_numbers import NumbersState
from distrain.blame import check_finite
from distrain.coordinator.early_stopping import judge
from distrain.coordinator.ledger import LedgerTotals
from distrain.coordinator.observers import EpochRecord
from distrain.coordinator.phases import Phase
from distrain.coordinator.recording import Recording
from distrain.coordinator.return_point import ReturnPoints
from distrain.coordinator.run_state import RunState
from distrain.coordinator.saving import Saver
from distrain.coordinator.slow_ranks import phase_of
from distrain.coordinator.stops import StopAskedError
from distrain.errors import BadStepError, RuinedWeightsError
from distrain.learn.loss_scale import LossScale
from distrain.parallel.summing import Flag
from distrain.step import StepResult
from distrain.validation import Measured

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """What the steps of a run go through, on one worker.

    Attributes:
        back_to: What the run may go back to.
        raised: What asks this worker to stop, 0 for nothing.
    """

    model: torch.nn.Module
    parts: Assembly
    back_to: ReturnPoints
    recording: Recording
    saver: Saver
    raised: Callable[[], int]

    def run(
        self,
        state: RunState,
        best: Weights,
        last_step: int,
        batches: Callable[[range], AbstractContextManager[Iterator[Batch]]],
    ) -> Weights:
        """Every step that is left of the run; from an earlier one again where bad numbers lead.

        Args:
            state: Where the run stands.
            best: The best epoch's weights so far, where they are to be restored.
            last_step: Of the run.
            batches: Opens this worker's samples of some steps, on its device.

        Returns:
            The best epoch's weights, where they are to be restored.

        Raises:
            StopAskedError: a worker was asked to stop; on all workers after the same step.
            BadStepError: numbers are bad, and the run ends with that; on all workers alike.
        """
        while True:
            steps = range(max(state.step, state.numbers.pass_until), last_step)
            with batches(steps) as columns:
                try:
                    best = self._steps(state, best, last_step, columns)
                    break
                except BadStepError as bad:
                    found = bad
            state, best = self._go_back(found)
        self.parts.step.check.compare(self.saver.run_state.step)
        return best

    def _steps(
        self, state: RunState, best: Weights, last_step: int, batches: Iterator[Batch]
    ) -> Weights:
        """The loop itself: steps, and a verdict at each epoch's end."""
        parts, recording = self.parts, self.recording
        steps_per_epoch = parts.plan.steps_per_epoch
        asked, seen, began = False, 0, time.monotonic()
        self.model.train()
        parts.world.phases.takes_up(state.step)
        while not state.stopped and (state.step < last_step or state.totals is not None):
            if state.passes(steps_per_epoch):
                state = state.after_passing(steps_per_epoch, parts.step.nothing)
                parts.step.standing.pass_to(state.step)
                parts.world.phases.takes_up(state.step)
                self.saver.passed(state)
            elif not state.ends_epoch(steps_per_epoch):
                batch = parts.plan.batch(state.step)
                self.back_to.keep(state, best, batch.epoch + 1)
                parts.world.phases.enter(Phase.LOADING)
                columns = next(batches).columns
                limits = self.parts.rules.bad_numbers.limits(state.numbers, state.fall.factor)
                result = parts.step(batch, columns, self._flags, state.loss_scale, limits)
                state = state.after_step(*self._counted(result, state.numbers))
                parts.world.phases.step_done(state.step)
                seen += batch.num_samples
                recording.step(result, state)
                self.saver.step(result, state)
                asked = any(result.flags[Flag.SAVE])
                if any(result.flags[Flag.STOP]):
                    parts.step.check.compare(state.step)
                    raise StopAskedError(result.flags[Flag.STOP])
            if state.ends_epoch(steps_per_epoch) and state.totals is not None:
                state, best = self._end_epoch(state, state.totals, best, seen, began)
                seen, began = 0, time.monotonic()
            parts.world.phases.enter(Phase.CHECKPOINT)
            self.saver.state(state, self.model, parts.step, best, asked=asked)
        return best

    def _end_epoch(
        self, state: RunState, totals: LedgerTotals, best: Weights, seen: int, began: float
    ) -> tuple[RunState, Weights]:
        """Measures, and judges; `seen` samples have been trained on since `began`."""
        parts, rules = self.parts, self.parts.rules
        epoch = state.step // parts.plan.steps_per_epoch
        check_finite(self.model, state.step, epoch)
        rate = seen / (time.monotonic() - began)
        with parts.step.standing.averaged():
            parts.world.phases.enter(Phase.EVALUATION)
            measured = parts.evaluate(self.raised) if parts.evaluate else Measured()
            parts.world.phases.enter(Phase.LOGGING)
            scores = totals.scores(parts.metrics) | measured.scores
            seconds = time.monotonic() - began
            record = EpochRecord(epoch, state.step, scores, seconds, rate, measured.confusion)
            self.recording.epoch(record)
            verdict = judge(rules.early_stopping, state.progress, epoch, scores)
            if verdict.improved and rules.early_stopping and rules.early_stopping.restore_best:
                best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        fall = state.fall.after(rules.plateau, scores)
        if fall.factor < state.fall.factor:
            self.recording.note("plateau", fall.text, step=state.step, factor=fall.factor)
        return state.after_epoch(record, verdict, fall), best

    def _go_back(self, bad: BadStepError) -> tuple[RunState, Weights]:
        """The state to go on with after a bad step, and the best weights of that time.

        Raises:
            BadStepError: the run ends with it, the state before the step saved.
        """
        rule, now = self.parts.rules.bad_numbers, self.saver.run_state.numbers
        if rule.action(bad.kind, now) != "go_back" or self.back_to.newest is None:
            if not isinstance(bad, RuinedWeightsError):
                self.saver.keep(self.model, self.parts.step)
            if now.interventions:
                bad.history = f". Before it, {'; '.join(map(str, now.interventions))}"
            raise bad
        there = self.back_to.go_back()
        numbers = rule.after_going_back(there.run.numbers, now, bad, there.run.step)
        state = replace(there.run, numbers=numbers)
        self.saver.went_back(bad, state, self.model, self.parts.step, there.best)
        return state, there.best

    def _counted(
        self, result: StepResult, numbers: NumbersState
    ) -> tuple[LedgerTotals, LossScale | None, NumbersState]:
        """What a step adds to the run's state: a bad one no loss and no samples."""
        rule, loss = self.parts.rules.bad_numbers, result.totals.loss
        if result.bad is not None:
            numbers = rule.after_skip(numbers, result.bad)
            return self.parts.step.nothing, result.loss_scale, numbers
        if not result.skipped:
            numbers = rule.after_step(numbers, loss, result.grad_norm)
        return result.totals, result.loss_scale, numbers

    def _flags(self) -> dict[Flag, int]:
        phases = self.parts.world.phases
        spent_us = phases.take_us(phase_of(phases.steps_done))
        return {Flag.STOP: self.raised(), Flag.SPENT: spent_us, **self.saver.flags()}
