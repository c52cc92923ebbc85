"""Exact metrics and predictions over a whole data set, whatever the number of workers (rule 14)."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from data_pipeline.dataset import Dataset
from data_pipeline.heads import Span
from data_pipeline.on_device import OnDevice
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe
from distrain.coordinator.ledger import Ledger, LedgerTotals
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.stops import StopAskedError
from distrain.errors import ProgramError
from distrain.micro_batch import Columns, MicroBatchStep, checked_result
from distrain.numerics import evaluation_mode, evaluation_seed, seed_generators
from distrain.parallel.payload import PayloadLayout
from distrain.parallel.reduction import TreeReduction
from distrain.parallel.split import owned_range
from distrain.parallel.world import World

ROWS = 128
"""Rows of one forward pass: a cut of its own, that no setting of the training changes."""

POLL_EVERY_S = 1.0
"""About how often the workers ask each other whether to stop."""

_DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""What predictions may be made of, in the order of the number that a worker sends for it."""


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

    def totals(
        self, dataset: Dataset, recipe: Recipe, metrics: MetricSet, *, target: str
    ) -> LedgerTotals:
        """Loss and metric sums over every row once, the same bits on every worker.

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
                found.append(outputs.detach().clone())
        return self._gathered(found, dataset)

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
                    number = batch.span.start // ROWS
                    seed_generators(evaluation_seed(self._seed, number), world.device)
                    yield batch.columns

            with evaluation_mode(self._model):
                yield chunks()

    def _gathered(self, found: list[torch.Tensor], dataset: Dataset) -> torch.Tensor:
        """All workers' outputs by rank, each padded to the longest for the exchange."""
        world = self._world
        if world.size == 1:
            return torch.cat(found).cpu()
        local = torch.cat(found) if found else None
        shape, dtype = _agree_on_kind(local, world)
        counts = [
            _num_rows(owned_range(_num_chunks(dataset), rank, world.size), dataset)
            for rank in range(world.size)
        ]
        send = torch.zeros((max(counts), *shape), dtype=dtype, device=world.device)
        if local is not None:
            send[: len(local)] = local
        # As bytes, which every backend carries, whatever the dtype.
        received = world.communicator.all_gather(send.view(-1).view(torch.uint8)).cpu()
        received = received.view(dtype).view(world.size, *send.shape)
        return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])


def _num_chunks(dataset: Dataset) -> int:
    return -(-dataset.num_rows // ROWS)


def _num_rows(chunks: range, dataset: Dataset) -> int:
    return max(0, min(chunks.stop * ROWS, dataset.num_rows) - chunks.start * ROWS)


def _agree_on_kind(local: torch.Tensor | None, world: World) -> tuple[list[int], torch.dtype]:
    """Shape and dtype of one output; a worker without rows learns them from the others."""
    most = 8
    mine = torch.zeros(most + 1, dtype=torch.int64, device=world.device)
    if local is not None:
        sizes = [_DTYPES.index(local.dtype), local.ndim, *local.shape[1:]]
        mine[: len(sizes)] = torch.tensor(sizes, dtype=torch.int64)
    dtype, ndim, *shape = world.communicator.all_gather(mine).amax(0).tolist()
    return [int(size) for size in shape[: ndim - 1]], _DTYPES[dtype]
