"""Exact metrics and predictions over a whole data set, whatever the number of workers (rule 14)."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from data_pipeline.dataset import Dataset
from data_pipeline.heads import Span
from data_pipeline.on_device import OnDevice
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe
from distrain.coordinator.ledger import Ledger, LedgerTotals
from distrain.coordinator.metrics import Chunk, MetricSet
from distrain.coordinator.phases import Phase
from distrain.coordinator.stops import StopAskedError
from distrain.errors import ProgramError, UndefinedScoreWarning
from distrain.micro_batch import Columns, MicroBatchStep, checked_result
from distrain.numerics import evaluation_mode, evaluation_seed, seed_generators
from distrain.parallel.gathering import gather_chunks
from distrain.parallel.payload import PayloadLayout
from distrain.parallel.reduction import TreeReduction
from distrain.parallel.split import owned_range
from distrain.parallel.world import World

ROWS = 128
"""Rows of one forward pass: a cut of its own, that no setting of the training changes."""

POLL_EVERY_S = 1.0
"""About how often the workers ask each other whether to stop."""


class Scores(dict[str, float]):
    """Scores by name, with what is no number beside them.

    Attributes:
        confusion: `(C, C)`, int64: how often samples of a class (row) were taken for each
            (column); None where it was not asked for. Outputs beyond the last class are in no
            column.
    """

    confusion: torch.Tensor | None = None


class Evaluation:
    """Runs a model over a data set in its stored order."""

    def __init__(
        self,
        model: torch.nn.Module,
        run: MicroBatchStep,
        world: World,
        seed: int,
        raised: Callable[[], int] | None = None,
    ) -> None:
        """`run` is what training does with a micro-batch, here in evaluation mode.

        `raised()` is what asks this worker to stop, if that is to be looked for meanwhile.
        """
        self._model, self._run, self._world, self._seed = model, run, world, seed
        self._raised = raised

    def scores(
        self, dataset: Dataset, recipe: Recipe, metrics: MetricSet, *, target: str
    ) -> Scores:
        """The mean loss and all metrics over every row once, the same bits on every worker.

        Where a metric needs all outputs at once, every worker's host has them, and the targets,
        meanwhile.

        Raises:
            StopAskedError: a worker has been asked to stop; on all workers alike.
        """
        kept: list[Chunk] | None = [] if metrics.needs_outputs else None
        totals = self.totals(dataset, recipe, metrics, target=target, kept=kept)
        measured = totals.scores(metrics)
        if kept is not None:
            measured |= self._of_outputs(kept, metrics, dataset)
        found = Scores({name: measured[name] for name in ("loss", *metrics.names)})
        found.confusion = metrics.confusion(totals.metric_counts)
        return found

    def _of_outputs(
        self, kept: Sequence[Chunk], metrics: MetricSet, dataset: Dataset
    ) -> dict[str, float]:
        """What all outputs tell: all workers compute it, and believe rank 0's processor."""
        world = self._world
        outputs = gather_chunks([outputs for outputs, _ in kept], world)
        targets = gather_chunks([target for _, target in kept], world)
        seed_generators(evaluation_seed(self._seed, _num_chunks(dataset)), world.device)
        with torch.inference_mode():
            found = metrics.of_outputs(list(zip(outputs, targets, strict=True)))
        values = torch.tensor(list(found.values()), dtype=torch.float64, device=world.device)
        world.communicator.broadcast(values)
        if undefined := [name for name in found if math.isnan(found[name])]:
            self._warn_of(undefined)
        return dict(zip(found, values.tolist(), strict=True))

    def _warn_of(self, undefined: Sequence[str]) -> None:
        if self._world.rank == 0:
            warnings.warn(
                f"{', '.join(undefined)}: not defined on this data set (NaN), such as where all "
                "targets are of one class",
                UndefinedScoreWarning,
                stacklevel=2,
            )

    def totals(
        self,
        dataset: Dataset,
        recipe: Recipe,
        metrics: MetricSet,
        *,
        target: str,
        kept: list[Chunk] | None = None,
    ) -> LedgerTotals:
        """Loss and metric sums over every row once, the same bits on every worker.

        This worker's outputs and targets are added to `kept`.

        Raises:
            StopAskedError: a worker has been asked to stop; on all workers alike.
        """
        ledger = Ledger(metrics)
        layout = PayloadLayout(ledger.num_float64, ledger.num_int64, num_float32=0)
        reduction = TreeReduction(layout, self._world.communicator, self._world.device)
        reduction.begin(_num_chunks(dataset))
        with self._owned_chunks(dataset, recipe) as chunks:
            for columns in self._polling(chunks, dataset):
                loss_sum, weight, outputs = checked_result(self._run(self._model, columns))
                leaf = reduction.leaf()
                ledger.write(
                    leaf,
                    loss_sum=loss_sum,
                    weight=weight,
                    num_samples=len(columns[target]),
                    outputs=outputs,
                    target=columns[target],
                )
                reduction.push(leaf)
                if kept is not None and outputs is not None:
                    kept.append((_on_host(outputs), _on_host(columns[target])))
        return ledger.read(reduction.sum().total)

    def _polling(self, chunks: Iterator[Columns], dataset: Dataset) -> Iterator[Columns]:
        """The chunks, with an exchange about once a second: does any worker have to stop?

        All workers take as many turns, also those with a chunk less, and agree from the slowest
        one's time how many turns to wait for the next exchange.
        """
        if self._raised is None:
            yield from chunks
            return
        turns = -(-_num_chunks(dataset) // self._world.size)
        due, began = 0, time.monotonic()
        for turn in range(turns):
            columns = next(chunks, None)
            if columns is not None:
                yield columns
            if turn == due:
                spent_us = int(1e6 * (time.monotonic() - began))
                mine = torch.tensor([self._raised(), spent_us], device=self._world.device)
                flags, spent = self._world.communicator.all_gather(mine).T.tolist()
                if any(flags):
                    raise StopAskedError(flags, (turn + 1) / turns)
                turn_s = 1e-6 * max(1, *spent) / (turn + 1)
                due = turn + max(1, int(POLL_EVERY_S / turn_s))

    def outputs(self, dataset: Dataset, recipe: Recipe) -> torch.Tensor:
        """The model's outputs `(N, ...)` for all rows in order, on the host of every worker."""
        found: list[torch.Tensor] = []
        with self._owned_chunks(dataset, recipe) as chunks:
            for columns in chunks:
                outputs = checked_result(self._run(self._model, columns))[2]
                if outputs is None:
                    raise ProgramError(
                        "there are no predictions: the micro_batch_step returned None"
                    )
                found.append(_on_host(outputs))
        return torch.cat(gather_chunks(found, self._world))

    @contextmanager
    def _owned_chunks(self, dataset: Dataset, recipe: Recipe) -> Iterator[Iterator[Columns]]:
        world, size = self._world, dataset.num_rows
        owned = owned_range(_num_chunks(dataset), world.rank, world.size)
        spans = [Span(0, chunk * ROWS, min((chunk + 1) * ROWS, size)) for chunk in owned]
        pin = world.device.type == "cuda"
        prefetcher = Prefetcher(dataset, recipe, spans, max_rows=ROWS, pin_memory=pin)
        with OnDevice(prefetcher, world.device) as batches:

            def chunks() -> Iterator[Columns]:
                for batch in batches:
                    self._world.phases.enter(Phase.EVALUATION)
                    number = batch.span.start // ROWS
                    seed_generators(evaluation_seed(self._seed, number), world.device)
                    yield batch.columns

            with evaluation_mode(self._model):
                yield chunks()


def _num_chunks(dataset: Dataset) -> int:
    return -(-dataset.num_rows // ROWS)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy: batches lie in memory that is used again."""
    return tensor.detach().to("cpu", copy=True)
