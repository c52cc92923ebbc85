"""The loop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from data_pipeline.batches import Batch
from distrain.assembly import Assembly
from distrain.coordinator.early_stopping import judge
from distrain.coordinator.observers import EpochRecord
from distrain.coordinator.recording import Recording
from distrain.coordinator.run_state import RunState
from distrain.coordinator.saving import Saver
from distrain.coordinator.stops import StopAskedError
from distrain.parallel.summing import Flag
from distrain.step import check_finite
from distrain.validation import Measured


@dataclass(frozen=True, kw_only=True)
class TrainingLoop:
    """What the steps of a run go through, on one worker.

    Attributes:
        batches: This worker's samples of each step that is left, on its device.
        raised: What asks this worker to stop, 0 for nothing.
    """

    model: torch.nn.Module
    parts: Assembly
    batches: Iterator[Batch]
    recording: Recording
    saver: Saver
    raised: Callable[[], int]

    def run(
        self, state: RunState, best: dict[str, torch.Tensor], last_step: int
    ) -> dict[str, torch.Tensor]:
        """Every step that is left of the run, and a verdict at each epoch's end.

        Returns:
            The best epoch's weights, where they are to be restored.

        Raises:
            StopAskedError: a worker was asked to stop; on all workers after the same step.
        """
        parts, rule, recording = self.parts, self.parts.rules.early_stopping, self.recording
        steps_per_epoch, metrics = parts.plan.steps_per_epoch, parts.metrics
        asked, seen, began = False, 0, time.monotonic()
        self.model.train()
        while not state.stopped and (state.step < last_step or state.totals is not None):
            if not state.ends_epoch(steps_per_epoch):
                batch = parts.plan.batch(state.step)
                columns = next(self.batches).columns
                result = parts.step(
                    batch, columns, self._flags, state.loss_scale, state.fall.factor
                )
                state = state.after_step(result.totals, result.loss_scale)
                seen += batch.num_samples
                recording.step(result, state)
                self.saver.step(result, state)
                asked = any(result.flags[Flag.SAVE])
                if any(result.flags[Flag.STOP]):
                    parts.step.check.compare(state.step)
                    raise StopAskedError(result.flags[Flag.STOP])
            if state.ends_epoch(steps_per_epoch) and state.totals is not None:
                check_finite(self.model, state.step)
                rate = seen / (time.monotonic() - began)
                with parts.step.standing.averaged():
                    measured = parts.evaluate(self.raised) if parts.evaluate else Measured()
                    scores = state.totals.scores(metrics) | measured.scores
                    epoch, seconds = state.step // steps_per_epoch, time.monotonic() - began
                    record = EpochRecord(
                        epoch, state.step, scores, seconds, rate, measured.confusion
                    )
                    recording.epoch(record)
                    verdict = judge(rule, state.progress, record.epoch, scores)
                    if verdict.improved and rule is not None and rule.restore_best:
                        best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
                fall = state.fall.after(parts.rules.plateau, scores)
                if fall.factor < state.fall.factor:
                    recording.note("plateau", fall.text, step=state.step, factor=fall.factor)
                state = state.after_epoch(record, verdict, fall)
                seen, began = 0, time.monotonic()
            self.saver.state(state, self.model, parts.step, best, asked=asked)
        parts.step.check.compare(state.step)
        return best

    def _flags(self) -> dict[Flag, int]:
        return {Flag.STOP: self.raised(), **self.saver.flags()}
