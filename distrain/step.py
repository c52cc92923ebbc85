"""One global batch: its micro-batches' gradients, their sum, clipping, the update."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from distrain.bad_numbers import StepLimits
from distrain.blame import Mark, RowsAt, new_marks, non_finite, spike
from distrain.coordinator.ledger import Ledger, LedgerTotals
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.phases import Phase
from distrain.errors import BadStepError, NonFiniteError, ProgramError
from distrain.learn.averaging import AveragedWeights
from distrain.learn.loss_scale import LossScale
from distrain.micro_batch import (
    Columns,
    MicroBatchResult,
    MicroBatchStep,
    MicroBatchWatch,
    check_loss,
    checked_result,
    columns_of,
)
from distrain.numerics import micro_batch_seed, seed_generators
from distrain.parallel.forward_guard import ForwardGuard
from distrain.parallel.gradients import FlatGradients
from distrain.parallel.payload import Payload
from distrain.parallel.running_statistics import RunningStatistics
from distrain.parallel.split import GlobalBatch
from distrain.parallel.state_check import StateCheck
from distrain.parallel.summing import Flag, StepSum
from distrain.parallel.sync_batch_norm import SynchronizedNorms
from distrain.parallel.traffic import Group, Sent, sent_by
from distrain.parallel.world import World
from distrain.practice.inspection import Inspection, Inspector
from distrain.standing import StandingState
from distrain.step_settings import StepSettings
from distrain.update import WeightUpdate


def _nothing() -> Mapping[Flag, int]:
    return {}


@dataclass(frozen=True)
class StepResult:
    """What one step leaves behind, the same on every worker.

    Attributes:
        grad_norm: Global 2-norm of the mean gradient before clipping.
        lr: Learning rate of the first parameter group.
        flags: What the workers have raised, by kind and rank; no number above depends on it.
        inspection: What the step did to each parameter, where it was looked at.
        loss_scale: For the step to come, where the loss is scaled.
        skipped: The gradient overflowed at this step's scale, or the step is bad; neither weights
            nor running statistics have moved.
        bad: What was wrong with it.
    """

    batch: GlobalBatch
    totals: LedgerTotals
    grad_norm: float
    lr: float
    flags: Mapping[Flag, tuple[int, ...]] = field(default_factory=dict)
    inspection: Inspection | None = None
    loss_scale: LossScale | None = None
    skipped: bool = False
    bad: BadStepError | None = None


class TrainingStep:
    """Computes this worker's micro-batches, sums over all, and moves the weights."""

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        micro_batch_step: MicroBatchStep,
        metrics: MetricSet,
        world: World,
        settings: StepSettings,
        *,
        global_batch: int,
        rows_at: RowsAt,
        average: AveragedWeights | None = None,
    ) -> None:
        """Lays out gradients and ledger for the model as it is now.

        `rows_at(epoch, start, stop)` names the samples at some positions, for error messages.
        `average` is kept up with the weights.
        """
        self._model, self._run = model, micro_batch_step
        self._world, self._settings = world, settings
        self._divisor, self._rows_at = float(global_batch), rows_at
        self._loss_scale, self._is_spent = 1.0, False
        self._losses: dict[int, tuple[torch.Tensor, torch.Tensor | float]] = {}
        gradients = FlatGradients(model)
        synchronized = settings.batch_norm == "sync"
        self._statistics = RunningStatistics(model, synchronized=synchronized)
        self.average = average or AveragedWeights(model, None)
        self.standing = StandingState(model, self._statistics, self.average)
        self._norms: SynchronizedNorms | None = None
        if synchronized and self._statistics.has_batch_norm:
            self._norms = SynchronizedNorms(model, world.communicator, world.device)
        self._ledger = Ledger(metrics, num_parameters=len(gradients.names))
        self._sum = StepSum(
            gradients,
            settings.sums,
            world,
            num_float64=self._ledger.num_float64,
            num_int64=self._ledger.num_int64,
            num_float32=self._statistics.num_floats,
        )
        ownership = self._sum.ownership(optimizer)
        self._guard = ForwardGuard(model, self._statistics.covered)
        self.update = WeightUpdate(
            optimizer,
            ownership,
            settings.schedule,
            settings.clip,
            seed=settings.seed,
            device=world.device,
        )
        replicated = None if settings.sums.shard_optimizer else optimizer
        self.check = StateCheck(model, replicated, world, settings.check_every)
        self._inspector = Inspector(gradients.names, gradients.parameters, settings.inspect_every)
        self._watch: MicroBatchWatch | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Torch's own object."""
        return self.update.optimizer

    @property
    def payload_bytes(self) -> int:
        """Bytes of one partial sum: gradients, running statistics, ledger."""
        return self._sum.layout.num_bytes

    def sent_bytes(self, num_micro_batches: int, group: Group | None = None) -> Sent:
        """What the busiest worker sends in a step of so many micro-batches: here, or of a group."""
        group = group or Group.here(self._world.communicator)
        layout = replace(self._sum.layout, num_flags=group.size * len(Flag))
        return sent_by(group, layout, num_micro_batches, self._sum.options)

    @property
    def target(self) -> str:
        """The column that metrics compare the outputs with."""
        return self._settings.target

    @property
    def micro_batch_step(self) -> MicroBatchStep:
        """What is done with each micro-batch."""
        return self._run

    @property
    def is_in_lockstep(self) -> bool:
        """Whether all of a worker's micro-batches are under way at once, and in memory."""
        return self._norms is not None

    def rows(self, batch: GlobalBatch, micro_batch: int) -> NDArray[np.int64]:
        """The data set's rows that a micro-batch is made of."""
        return self._rows_at(batch.epoch, *batch.positions(range(micro_batch, micro_batch + 1)))

    def look_at(self, every_steps: int, watch: MicroBatchWatch) -> None:
        """Inspects every so-manieth step, and has `watch` round each micro-batch from now on."""
        gradients = self._sum.gradients
        self._inspector = Inspector(gradients.names, gradients.parameters, every_steps)
        self._watch = watch

    @property
    def partial_sums(self) -> int:
        """Partial sums that this worker has kept at once so far."""
        return self._sum.num_payloads

    def __call__(
        self,
        batch: GlobalBatch,
        columns: Columns,
        raised: Callable[[], Mapping[Flag, int]] = _nothing,
        loss_scale: LossScale | None = None,
        limits: StepLimits = StepLimits(),  # noqa: B008 - it is frozen
    ) -> StepResult:
        """Does one step; `columns` holds the samples of this worker's micro-batches.

        `raised()` is what asks this worker to stop; every worker is told all of them. `loss_scale`
        is what the step before has left, None for the first.

        Raises:
            BadStepError: of a kind that `limits` don't have skipped; on all workers alike; the
                weights are those before the step.
        """
        digest = self.check.word(batch.step)
        before = scaling = (loss_scale or LossScale()) if self._settings.scales_loss else None
        self._loss_scale = 1.0 if scaling is None else scaling.scale
        with self.standing.held():  # running statistics move with each micro-batch from here on
            self._statistics.begin()
        self._guard.begin()
        owned = self._sum.begin(batch.num_micro_batches)
        self._losses = {}
        for _ in self._leaves(batch, owned, columns):
            pass
        self._guard.check()
        summed = self._sum.close({**raised(), Flag.STATE: digest})
        self.check.judge(batch.step, summed.flags[Flag.STATE])
        if summed.is_wrong:  # seen by all workers alike: once more, the slow way
            self._statistics.restore()
            return self(batch, columns, raised, loss_scale, limits)
        totals = self._ledger.read(summed.total)
        # Each backward pass ran on sum / global_batch (a constant, so that float16 would not
        # overflow); what is wanted is sum / weight (rule 4).
        scale = self._divisor / totals.weight / self._loss_scale if totals.weight else 0.0
        if scale != 1.0:
            summed.gradient.mul_(scale)
        norm = self.update.norm(summed.gradient)
        overflow = not math.isfinite(norm) and math.isfinite(totals.loss_sum)
        if scaling is not None:
            scaling = scaling.after(overflow=overflow)
            self._is_spent = scaling.is_spent
            if overflow and not self._is_spent:
                return self._skipped(batch, totals, norm, summed.flags, scaling, limits)
        bad = self._problem(batch, owned, columns, totals, norm, limits)
        if bad is not None:
            if bad.kind not in limits.skips:
                raise bad
            return self._skipped(batch, totals, norm, summed.flags, before, limits, bad)
        self._inspector.before(batch.step, partial(self.update.ownership.whole, summed.gradient))
        self.update.clip(summed.gradient, norm)
        lr = self.update.set_learning_rate(batch.step, limits.lr_factor)
        with self.standing.moving_to(batch.step + 1):
            self._statistics.apply(summed.total.float32)
            if self._norms is not None:
                self._norms.apply()
            self.update.move(batch.step, summed.gradient, totals.present)
            self.average.update(batch.step + 1)
        looked = self._inspector.after()
        return StepResult(batch, totals, norm, lr, summed.flags, looked, scaling)

    def _problem(
        self,
        batch: GlobalBatch,
        owned: range,
        columns: Columns,
        totals: LedgerTotals,
        norm: float,
        limits: StepLimits,
    ) -> BadStepError | None:
        """What is wrong with a step's numbers; if anything is, all stands as before the step."""
        if not (math.isfinite(norm) and math.isfinite(totals.loss_sum)):
            return self._non_finite(batch, owned, columns)
        value = totals.loss if limits.watch == "loss" else norm
        if not value > limits.spike_above:
            return None
        self._statistics.restore()
        self._sum.gradients.clear()
        return spike(batch, self._losses, self._rows_at, self._world, limits, value)

    def _skipped(
        self,
        batch: GlobalBatch,
        totals: LedgerTotals,
        norm: float,
        flags: Mapping[Flag, tuple[int, ...]],
        scaling: LossScale | None,
        limits: StepLimits,
        bad: BadStepError | None = None,
    ) -> StepResult:
        """Counts a step that moves nothing."""
        self._sum.gradients.clear()
        with self.standing.moving_to(batch.step + 1):
            self._statistics.restore()
        lr = self.update.set_learning_rate(batch.step, limits.lr_factor)
        return StepResult(batch, totals, norm, lr, flags, None, scaling, skipped=True, bad=bad)

    @property
    def nothing(self) -> LedgerTotals:
        """The totals of no step."""
        return self._ledger.nothing

    def _leaves(
        self, batch: GlobalBatch, owned: range, columns: Columns
    ) -> Iterator[tuple[int, Payload]]:
        """This worker's micro-batches, each as a leaf of the tree: loss, gradient and the rest."""
        finished: dict[int, tuple[Columns, MicroBatchResult]] = {}
        if self._norms is not None and not owned:
            self._in_lockstep(self._norms, batch, owned, columns)  # the others count on it
        hooks = self._norms is None or len(owned) == 1
        for micro_batch in owned:
            is_last = micro_batch == owned.stop - 1
            with self._sum.leaf(is_last=is_last, hooks=hooks) as leaf:
                start, stop = batch.positions(range(micro_batch, micro_batch + 1))
                collect = partial(
                    self._statistics.collect, leaf.float32, (stop - start) / batch.num_samples
                )
                if self._norms is not None:
                    finished = finished or self._in_lockstep(self._norms, batch, owned, columns)
                    self._norms.hand_over(micro_batch - owned.start)
                    sample, result = finished[micro_batch]
                else:
                    sample = columns_of(batch, owned, micro_batch, columns)
                    result = self._forward_backward(
                        self._model, batch, micro_batch, sample, collect
                    )
                self._sum.mark_present(self._ledger.present(leaf))
                loss_sum, weight, outputs = result
                self._losses[micro_batch] = loss_sum.detach(), weight
                self._ledger.write(
                    leaf,
                    loss_sum=loss_sum,
                    weight=weight,
                    num_samples=stop - start,
                    outputs=outputs,
                    target=sample.get(self._settings.target),
                )
            yield micro_batch, leaf

    def _in_lockstep(
        self, norms: SynchronizedNorms, batch: GlobalBatch, owned: range, columns: Columns
    ) -> dict[int, tuple[Columns, MicroBatchResult]]:
        """All own micro-batches together: their norms meet. Samples and results, by number."""
        finished: dict[int, tuple[Columns, MicroBatchResult]] = {}

        def work(micro_batch: int, module: torch.nn.Module) -> None:
            sample = columns_of(batch, owned, micro_batch, columns)
            result = self._forward_backward(module, batch, micro_batch, sample)
            finished[micro_batch] = sample, result

        self._sum.gradients.clear()
        works = [partial(work, one) for one in owned]
        norms.run(batch.step, batch.num_micro_batches, works, looks=self._sum.is_alone)
        return finished

    def _forward_backward(
        self,
        module: torch.nn.Module,
        batch: GlobalBatch,
        micro_batch: int,
        sample: Columns,
        collect: Callable[[], None] = lambda: None,
    ) -> MicroBatchResult:
        """`collect` is called in between: what is computed again for a backward pass, under
        activation checkpointing, moves running statistics once more.
        """
        self._world.phases.enter(Phase.FORWARD)
        if module is self._model:
            self._sum.gradients.clear()
        self._statistics.restore()
        seed = micro_batch_seed(self._settings.seed, batch.step, micro_batch)
        seed_generators(seed, self._world.device)
        watched: AbstractContextManager[MicroBatchStep] = nullcontext(self._run)
        if self._watch is not None:
            watched = self._watch(self._run, batch, micro_batch, module, sample)
        try:
            with watched as run:
                loss_sum, weight, outputs = checked_result(run(module, sample))
                check_loss(loss_sum)
                collect()
                self._world.phases.enter(Phase.BACKWARD)
                scaled = loss_sum / self._divisor * self._loss_scale
                scaled.backward()  # type: ignore[no-untyped-call]
        except ValueError as error:
            if self._statistics.has_batch_norm and "more than 1 value per channel" in str(error):
                raise ProgramError(
                    f"step {batch.step + 1}, micro-batch {micro_batch} has a single sample, and a "
                    'batch norm has no variance over one: choose last_batch = "drop", or another '
                    "micro_batch or global_batch, so that the last one of an epoch has more"
                ) from error
            raise
        return loss_sum, weight, outputs

    def _non_finite(self, batch: GlobalBatch, owned: range, columns: Columns) -> NonFiniteError:
        """Finds the micro-batches at fault by doing the step once more: it gives the same bits.

        A closing exchange, which all workers enter since all saw the same sum.
        """
        marks = new_marks(batch.num_micro_batches)
        self._sum.begin(batch.num_micro_batches, alone=True)
        for micro_batch, leaf in self._leaves(batch, owned, columns):
            marks[Mark.LOSS, micro_batch] = not math.isfinite(float(leaf.float64[0]))
            marks[Mark.GRADIENT, micro_batch] = not bool(torch.isfinite(leaf.gradient).all())
        if self._norms is not None:
            self._norms.mark(marks[Mark.NORM_INPUT], marks[Mark.NORM_GRADIENT])
        self._statistics.restore()
        self._sum.gradients.clear()
        self.check.compare(batch.step)  # a worker's silent error would be the cause
        gathered = self._world.communicator.all_gather(marks.to(self._world.device)).sum(0).cpu()
        return non_finite(batch, gathered, self._rows_at, spent_scale=self._is_spent)
