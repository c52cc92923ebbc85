import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from data_pipeline import DataError
from data_pipeline.augment import Draw, Samples
from data_pipeline.batches import Batch
from data_pipeline.heads import Span
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe
from tests.prefetched import DATASET, NUM_ROWS, RECIPE, epoch_of_spans, load

LABELS = Recipe(columns=("label",))

MOST_S = 120.0
"""Of a test's few milliseconds a busy machine may make seconds."""


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "distrain-loader"]


@pytest.fixture(autouse=True)
def no_thread_is_left_and_none_waits_for_ever() -> Iterator[None]:
    def too_late(*_: object) -> None:
        raise TimeoutError(f"{MOST_S:g} s are over: someone waits for what will never come")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, MOST_S, 5)
    try:
        yield
        assert loader_threads() == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
@pytest.mark.parametrize("threads", [1, 2, 3, 12])
def test_batches_are_the_same_whatever_the_depth_and_the_threads(depth: int, threads: int) -> None:
    spans = epoch_of_spans(0, 7) + epoch_of_spans(1, 7)
    one, other = load(RECIPE, spans), load(RECIPE, spans, depth=depth, threads=threads)
    assert [batch.span for batch in other] == spans
    assert [batch.rows for batch in one] == [batch.rows for batch in other]
    for name in RECIPE.columns:
        assert [batch.columns[name].tobytes() for batch in one] == [
            batch.columns[name].tobytes() for batch in other
        ]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_buffers_are_used_again(depth: int) -> None:
    places: dict[str, set[int]] = {name: set() for name in RECIPE.columns}
    spans = epoch_of_spans(0, 1)
    with Prefetcher(DATASET, RECIPE, spans, max_rows=1, depth=depth) as batches:
        for batch in batches:
            for name, tensor in batch.columns.items():
                places[name].add(tensor.data_ptr())
    assert {name: len(found) for name, found in places.items()} == {
        "image": depth + 1,
        "label": depth + 1,
    }


@dataclass
class Counted:
    """A transform that counts the batches it was given, and can be made to fail at a position."""

    fail_at: int | None = None
    error: BaseException = field(default_factory=lambda: ZeroDivisionError("no division"))
    count: int = 0
    threads: set[str] = field(default_factory=set)

    def __call__(self, samples: Samples, draw: Draw) -> None:
        assert draw.num_samples == len(samples)
        name = threading.current_thread().name
        if name != "distrain-loader":
            return  # the first rows are tried before the threads start
        if samples.arrays["row"][0] == self.fail_at:
            raise self.error
        self.count += 1
        self.threads.add(name)

    def wait_for(self, count: int) -> None:
        while self.count < count:
            time.sleep(0.001)


def counted_recipe(transform: Counted) -> Recipe:
    return Recipe(columns=("label", "row"), inputs="label", transforms=(transform,))


@pytest.mark.parametrize("depth", [1, 2])
def test_the_thread_works_ahead_until_the_buffers_are_full_and_waits_for_them(depth: int) -> None:
    counted = Counted()
    spans = epoch_of_spans(0, 1)
    with Prefetcher(DATASET, counted_recipe(counted), spans, max_rows=1, depth=depth) as batches:
        counted.wait_for(depth + 1)
        next(batches)
        time.sleep(0.02)
        assert counted.count == depth + 1
        next(batches)
        counted.wait_for(depth + 2)
        time.sleep(0.02)
        assert counted.count == depth + 2
    assert counted.threads == {"distrain-loader"}


def test_a_batch_stands_until_the_next_is_asked_for() -> None:
    counted = Counted()
    with Prefetcher(DATASET, counted_recipe(counted), epoch_of_spans(0, 1), max_rows=1) as batches:
        for number, batch in enumerate(batches):
            counted.wait_for(min(number + 3, NUM_ROWS))
            assert batch.columns["label"].tolist() == [number % 3]


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("fail_at", [0, 12, 36])
def test_an_error_in_a_thread_is_raised_by_the_next_that_would_have_given_its_batch(
    threads: int, depth: int, fail_at: int
) -> None:
    batches = Prefetcher(
        DATASET,
        counted_recipe(Counted(fail_at)),
        epoch_of_spans(0, 4),
        max_rows=4,
        depth=depth,
        threads=threads,
    )
    before = range(0, fail_at, 4)
    assert [next(batches).span.start for _ in before] == list(before)
    with pytest.raises(ZeroDivisionError, match="no division"):
        next(batches)
    assert loader_threads() == []
    assert list(batches) == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_that_would_end_the_program_does_not_leave_the_loop_waiting(
    error: BaseException,
) -> None:
    recipe = counted_recipe(Counted(4, error))
    with Prefetcher(DATASET, recipe, epoch_of_spans(0, 4), max_rows=4) as batches:
        next(batches)
        with pytest.raises(type(error)):
            next(batches)


def test_a_stop_iteration_of_a_transform_does_not_pass_for_the_end() -> None:
    recipe = counted_recipe(Counted(4, StopIteration()))
    with Prefetcher(DATASET, recipe, epoch_of_spans(0, 4), max_rows=4) as batches:
        next(batches)
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            next(batches)


def test_an_error_of_whoever_names_the_spans_is_raised_too() -> None:
    def spans() -> Iterator[Span]:
        yield Span(0, 0, 1)
        raise RuntimeError("no more spans")

    with Prefetcher(DATASET, LABELS, spans(), max_rows=1) as batches:
        next(batches)
        with pytest.raises(RuntimeError, match="no more spans"):
            next(batches)


def test_a_span_longer_than_the_buffers_is_refused() -> None:
    with (
        Prefetcher(DATASET, LABELS, [Span(0, 0, 4), Span(0, 4, 9)], max_rows=4) as batches,
        pytest.raises(ValueError, match=r"start=4, stop=9\) has more than the 4 rows that buffers"),
    ):
        list(batches)


def test_an_unknown_column_is_refused_before_a_thread_starts() -> None:
    with pytest.raises(DataError, match="arrays has no column 'x'; it has"):
        Prefetcher(DATASET, Recipe(columns=("label", "x")), [], max_rows=1)


@pytest.mark.parametrize(("depth", "threads"), [(0, 1), (1, 0), (-1, 3)])
def test_a_depth_or_threads_below_one_are_refused(depth: int, threads: int) -> None:
    with pytest.raises(
        ValueError, match=f"depth is {depth} and threads is {threads}; both must be 1 or more"
    ):
        Prefetcher(DATASET, LABELS, [], max_rows=1, depth=depth, threads=threads)


def test_no_spans_are_no_batches() -> None:
    assert load(RECIPE, []) == []


def test_the_thread_ends_when_the_spans_do() -> None:
    batches = Prefetcher(DATASET, LABELS, epoch_of_spans(0, 4), max_rows=4)
    assert len(list(batches)) == 10
    assert loader_threads() == []
    assert list(batches) == []


@pytest.mark.parametrize("num_taken", [0, 1, 5, 10])
@pytest.mark.parametrize("threads", [1, 4])
def test_closing_in_the_middle_leaves_no_thread_and_no_more_batches(
    num_taken: int, threads: int
) -> None:
    batches = Prefetcher(DATASET, LABELS, epoch_of_spans(0, 4), max_rows=4, threads=threads)
    for _ in range(num_taken):
        next(batches)
    assert len(loader_threads()) <= threads
    batches.close()
    assert loader_threads() == []
    assert list(batches) == []
    batches.close()


def test_an_endless_iterator_of_spans_ends_with_the_block() -> None:
    def endless() -> Iterator[Span]:
        while True:
            yield Span(0, 0, 1)

    with Prefetcher(DATASET, LABELS, endless(), max_rows=1) as batches:
        for number, _ in enumerate(batches):
            if number == 20:
                break
    assert loader_threads() == []


def test_an_error_in_the_block_is_raised_and_closes_the_loader() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Prefetcher(DATASET, LABELS, epoch_of_spans(0, 1), max_rows=1),
    ):
        raise KeyboardInterrupt
    assert loader_threads() == []


def test_a_close_from_elsewhere_wakes_who_waits_for_a_batch() -> None:
    gate = threading.Event()

    def slow() -> Iterator[Span]:
        gate.wait()
        yield Span(0, 0, 1)

    batches = Prefetcher(DATASET, LABELS, slow(), max_rows=1)
    left: list[Batch] = []
    consumer = threading.Thread(target=lambda: left.extend(batches), daemon=True)
    closer = threading.Thread(target=batches.close, daemon=True)
    consumer.start()
    time.sleep(0.05)  # until it waits
    closer.start()
    assert batches._closed.wait(MOST_S)  # and it waits for the thread
    gate.set()
    for thread in (consumer, closer):
        thread.join()
    assert left == []


def test_with_pinned_memory_every_column_handed_out_lies_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned: dict[int, torch.Tensor] = {}

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        pinned[copy.data_ptr()] = copy
        return copy

    # To pin in earnest takes a GPU.
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    spans = epoch_of_spans(0, 7)
    with Prefetcher(DATASET, RECIPE, spans, max_rows=7, pin_memory=True) as batches:
        for batch, expected in zip(batches, load(RECIPE, spans), strict=True):
            assert {tensor.data_ptr() for tensor in batch.columns.values()} <= set(pinned)
            for name, tensor in batch.columns.items():
                assert np.array_equal(tensor.numpy(), expected.columns[name])
    # Two columns in each of three buffers: what is not handed out is not pinned.
    assert len(pinned) == 6
