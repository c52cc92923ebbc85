"""The cut of a run into batches, micro-batches and workers: pure arithmetic over positions."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.errors import ConfigError
from distrain.parallel.split import BatchPlan, owned_range, useful_world_sizes


@st.composite
def plans(draw: st.DrawFn) -> BatchPlan:
    micro_batch = draw(st.integers(1, 9))
    global_batch = micro_batch * draw(st.integers(1, 11))
    last_batch = draw(st.sampled_from(["keep", "drop"]))
    least = global_batch if last_batch == "drop" else 1
    num_rows = draw(st.integers(least, 250))
    return BatchPlan(num_rows, global_batch, micro_batch, last_batch)  # type: ignore[arg-type]


@given(num_items=st.integers(0, 300), world_size=st.integers(1, 40))
@settings(deadline=None)
def test_owned_ranges_are_a_partition_as_even_as_can_be(num_items: int, world_size: int) -> None:
    ranges = [owned_range(num_items, rank, world_size) for rank in range(world_size)]
    assert [item for owned in ranges for item in owned] == list(range(num_items))
    sizes = [len(owned) for owned in ranges]
    assert max(sizes) - min(sizes) <= 1


@given(plan=plans(), data=st.data())
@settings(deadline=None)
def test_the_workers_micro_batches_partition_every_batch(
    plan: BatchPlan, data: st.DataObject
) -> None:
    world_size = data.draw(st.integers(1, plan.num_micro_batches))
    for step in range(plan.steps_per_epoch):
        batch = plan.batch(step)
        owned = [batch.owned(rank, world_size) for rank in range(world_size)]
        assert [item for part in owned for item in part] == list(range(batch.num_micro_batches))
        spans = [batch.positions(part) for part in owned]
        assert (spans[0][0], spans[-1][1]) == (batch.start, batch.stop)
        assert all(before[1] == after[0] for before, after in pairwise(spans))


@given(plan=plans())
@settings(deadline=None)
def test_the_micro_batches_of_an_epoch_cover_each_of_its_positions_once_in_order(
    plan: BatchPlan,
) -> None:
    covered: list[int] = []
    for step in range(plan.steps_per_epoch):
        batch = plan.batch(step)
        sizes = []
        for micro_batch in range(batch.num_micro_batches):
            start, stop = batch.positions(range(micro_batch, micro_batch + 1))
            sizes.append(stop - start)
            covered += range(start, stop)
        assert sizes[:-1] == [plan.micro_batch] * (len(sizes) - 1)
        assert 1 <= sizes[-1] <= plan.micro_batch
        assert sum(sizes) == batch.num_samples
    dropped = plan.num_rows % plan.global_batch if plan.last_batch == "drop" else 0
    assert covered == list(range(plan.num_rows - dropped))


@given(plan=plans(), epoch=st.integers(0, 1_000), data=st.data())
@settings(deadline=None)
def test_the_step_alone_gives_epoch_and_place(
    plan: BatchPlan, epoch: int, data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, plan.steps_per_epoch - 1))
    batch = plan.batch(epoch * plan.steps_per_epoch + number)
    first = plan.batch(number)
    assert (batch.epoch, batch.step) == (epoch, epoch * plan.steps_per_epoch + number)
    assert (batch.start, batch.stop) == (first.start, first.stop)


def test_digits_last_batch_has_157_samples_in_five_micro_batches_the_last_of_29() -> None:
    plan = BatchPlan(1437, 256, 32)
    assert plan.steps_per_epoch == 6
    last = plan.batch(5)
    assert (last.start, last.stop, last.num_samples) == (1280, 1437, 157)
    assert last.num_micro_batches == 5
    assert [last.owned(rank, 2) for rank in range(2)] == [range(2), range(2, 5)]
    assert last.positions(range(4, 5)) == (1408, 1437)


def test_a_short_batch_leaves_some_workers_without_a_micro_batch() -> None:
    last = BatchPlan(66, 64, 8).batch(1)
    assert last.num_micro_batches == 1
    assert [len(last.owned(rank, 8)) for rank in range(8)] == [0, 0, 0, 0, 0, 0, 0, 1]
    assert last.positions(last.owned(3, 8)) == (64, 64)


def test_drop_leaves_out_the_short_batch_and_keep_does_not() -> None:
    assert BatchPlan(10, 4, 2, "drop").steps_per_epoch == 2
    assert BatchPlan(10, 4, 2, "keep").steps_per_epoch == 3
    assert BatchPlan(8, 4, 2, "drop").steps_per_epoch == 2
    assert BatchPlan(10, 4, 2, "drop").batch(2).epoch == 1


def test_drop_that_leaves_no_batch_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r'100 rows give no batch of 256 with last_batch = "drop"'
    ):
        BatchPlan(100, 256, 32, "drop")


def test_a_micro_batch_that_does_not_divide_is_refused_by_the_plan() -> None:
    with pytest.raises(ConfigError, match="a micro-batch of 30 does not divide"):
        BatchPlan(100, 256, 30)


@pytest.mark.parametrize(
    ("sizes", "workers", "message"),
    [
        (
            (256, 32),
            12,
            "12 workers, but a global batch of 256 has only 8 micro-batches of 32: "
            "lower micro_batch from 32 to 16, or start at most 8 workers",
        ),
        (
            (256, 32),
            100,
            "100 workers, but a global batch of 256 has only 8 micro-batches of 32: "
            "lower micro_batch from 32 to 2, or start at most 8 workers",
        ),
        (
            (8, 1),
            9,
            "9 workers, but a global batch of 8 has only 8 micro-batches of 1: "
            "start at most 8 workers",
        ),
        (
            (21, 7),
            4,
            "4 workers, but a global batch of 21 has only 3 micro-batches of 7: "
            "lower micro_batch from 7 to 3, or start at most 3 workers",
        ),
    ],
)
def test_more_workers_than_micro_batches_are_refused_with_what_would_do(
    sizes: tuple[int, int], workers: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        BatchPlan(1_000, *sizes).check_world_size(workers)
    assert str(caught.value) == message


@given(plan=plans(), world_size=st.integers(1, 120))
@settings(deadline=None)
def test_what_the_refusal_proposes_is_accepted(plan: BatchPlan, world_size: int) -> None:
    try:
        plan.check_world_size(world_size)
    except ConfigError as error:
        assert world_size > plan.num_micro_batches
        plan.check_world_size(plan.num_micro_batches)
        lower = re.search(r"micro_batch from \d+ to (\d+)", str(error))
        assert (lower is not None) == (world_size <= plan.global_batch)
        if lower is not None:
            smaller = BatchPlan(plan.num_rows, plan.global_batch, int(lower[1]), plan.last_batch)
            smaller.check_world_size(world_size)
    else:
        assert world_size <= plan.num_micro_batches


@given(num_micro_batches=st.integers(1, 300))
def test_useful_world_sizes_are_those_whose_busiest_worker_has_less_to_do(
    num_micro_batches: int,
) -> None:
    def busiest(size: int) -> int:
        return max(len(owned_range(num_micro_batches, rank, size)) for rank in range(size))

    useful = useful_world_sizes(num_micro_batches)
    assert useful[0] == 1
    assert useful[-1] == num_micro_batches
    assert useful == [
        size
        for size in range(1, num_micro_batches + 1)
        if size == 1 or busiest(size) < busiest(size - 1)
    ]
