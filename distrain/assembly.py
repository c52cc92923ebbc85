"""The parts of a training, put together and not started yet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_pipeline.dataset import Dataset
from data_pipeline.heads import Span
from data_pipeline.on_device import OnDevice
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.rules import Rules
from distrain.parallel.split import BatchPlan
from distrain.parallel.world import World
from distrain.step import TrainingStep
from distrain.validation import Measured


@dataclass(frozen=True, kw_only=True)
class Assembly:
    """What one worker needs to train.

    Attributes:
        recipe: How training batches are made.
        step: Does one global batch.
        metrics: What each step measures.
        evaluate: Measures the validation sets, if there are any, asking `raised` now and then
            whether to leave.
        rules: What goes by the scores.
    """

    world: World
    train: Dataset
    plan: BatchPlan
    recipe: Recipe
    metrics: MetricSet
    step: TrainingStep
    evaluate: Callable[[Callable[[], int]], Measured] | None
    rules: Rules

    def batches(self, steps: range, depth: int, threads: int = 1) -> OnDevice:
        """This worker's samples of some steps, on its device, `depth` batches prepared ahead."""
        rank, size = self.world.rank, self.world.size
        plan = self.plan

        def spans() -> Iterator[Span]:
            for number in steps:
                batch = plan.batch(number)
                yield Span(batch.epoch, *batch.positions(batch.owned(rank, size)))

        prefetcher = Prefetcher(
            self.train,
            self.recipe,
            spans(),
            max_rows=min(-(-plan.num_micro_batches // size) * plan.micro_batch, plan.num_rows),
            depth=depth,
            threads=threads,
            pin_memory=self.world.device.type == "cuda",
        )
        return OnDevice(prefetcher, self.world.device)


def check_datasets(
    datasets: Iterable[Dataset], columns: Sequence[str], world: World, *, verify: bool
) -> None:
    """Refuses data that lacks a column or, if asked to `verify`, differs from its digests.

    Raises:
        DataError: names the column, or the shard; each worker looks at its part of the shards.
    """
    for dataset in datasets:
        for name in columns:
            dataset.column(name)
        if verify:
            dataset.verify(rank=world.rank, world_size=world.size)
