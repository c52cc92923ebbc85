import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import DataError, Dataset
from data_pipeline.augment import Flip, Shift, apply
from data_pipeline.loader import Batch, Loader, Recipe, Span
from data_pipeline.order import BLOCK, ShuffledOrder
from data_pipeline.standardize import standardization

NUM_ROWS = 40
GENERATOR = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "image": GENERATOR.integers(0, 256, (NUM_ROWS, 2, 5, 4), dtype=np.uint8),
    "weight": GENERATOR.normal(size=NUM_ROWS).astype(np.float32),
    "label": np.arange(NUM_ROWS) % 3,
}
DATASET = Dataset.from_arrays(ARRAYS, classes={"label": "abc"})
SCALING = standardization(DATASET, "image", scaled=True)
assert SCALING is not None
TRANSFORMS = (Shift(1), Flip())
RECIPE = Recipe(
    columns=("image", "label"),
    seed=7,
    shuffle=True,
    augmented="image",
    transforms=TRANSFORMS,
    standardized={"image": SCALING},
)
LABELS = Recipe(columns=("label",))


def epoch_of_spans(epoch: int, length: int, num_rows: int = NUM_ROWS) -> list[Span]:
    return [
        Span(epoch, start, min(start + length, num_rows)) for start in range(0, num_rows, length)
    ]


@dataclass(frozen=True)
class Copy:
    """A batch that may be kept."""

    span: Span
    rows: list[int]
    columns: dict[str, NDArray[Any]]


def copied(batch: Batch) -> Copy:
    columns = {name: tensor.numpy().copy() for name, tensor in batch.columns.items()}
    return Copy(batch.span, batch.rows.tolist(), columns)


def load(recipe: Recipe, spans: list[Span], *, depth: int = 2) -> list[Copy]:
    with Loader(DATASET, recipe, spans, max_rows=NUM_ROWS, depth=depth) as loader:
        return [copied(batch) for batch in loader]


def rows_of(batches: list[Copy]) -> list[int]:
    return list(chain.from_iterable(batch.rows for batch in batches))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "distrain-loader"]


@pytest.fixture(autouse=True)
def no_thread_is_left_and_none_waits_for_ever() -> Iterator[None]:
    def too_late(*_: object) -> None:
        raise TimeoutError("a loader's test took 30 s: someone waits for what will never come")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, 30, 5)
    try:
        yield
        assert loader_threads() == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def computed(span: Span) -> dict[str, NDArray[Any]]:
    """What RECIPE gives, in plain NumPy."""
    rows = ShuffledOrder(NUM_ROWS, 7, span.epoch).rows(0, NUM_ROWS)[span.start : span.stop]
    images = apply(
        TRANSFORMS, ARRAYS["image"][rows], seed=7, epoch=span.epoch, first_position=span.start
    )
    axes = (0, 2, 3)
    mean = ARRAYS["image"].mean(axis=axes, keepdims=True)
    std = ARRAYS["image"].std(axis=axes, keepdims=True)
    return {"image": (images - mean) / std, "label": ARRAYS["label"][rows]}


def test_a_batch_is_gathered_augmented_and_standardised() -> None:
    spans = epoch_of_spans(0, 16) + epoch_of_spans(1, 9)
    batches = load(RECIPE, spans)
    assert [batch.span for batch in batches] == spans
    for batch in batches:
        expected = computed(batch.span)
        assert list(batch.columns) == ["image", "label"]
        assert batch.columns["image"].dtype == np.float32
        np.testing.assert_allclose(batch.columns["image"], expected["image"], rtol=1e-5, atol=1e-6)
        assert np.array_equal(batch.columns["label"], expected["label"])
        assert np.array_equal(ARRAYS["label"][batch.rows], expected["label"])


def test_without_a_recipe_for_more_the_columns_are_as_stored() -> None:
    recipe = Recipe(columns=("weight", "image"))
    batches = load(recipe, epoch_of_spans(3, 11))
    for name in ("weight", "image"):
        joined = np.concatenate([batch.columns[name] for batch in batches])
        assert joined.dtype == ARRAYS[name].dtype
        assert np.array_equal(joined, ARRAYS[name])


@pytest.mark.parametrize("depth", [1, 2, 3, 10])
def test_batches_are_the_same_whatever_the_depth(depth: int) -> None:
    spans = epoch_of_spans(0, 7) + epoch_of_spans(1, 7)
    one, other = load(RECIPE, spans, depth=2), load(RECIPE, spans, depth=depth)
    assert [batch.rows for batch in one] == [batch.rows for batch in other]
    for name in RECIPE.columns:
        assert [batch.columns[name].tobytes() for batch in one] == [
            batch.columns[name].tobytes() for batch in other
        ]


@given(cuts=st.lists(st.integers(0, NUM_ROWS), max_size=8), epoch=st.integers(0, 1_000))
@settings(deadline=None, max_examples=40)
def test_the_bits_of_an_epoch_do_not_depend_on_its_cut_into_spans(
    cuts: list[int], epoch: int
) -> None:
    edges = [0, *sorted(cuts), NUM_ROWS]
    spans = [Span(epoch, a, b) for a, b in pairwise(edges)]
    (whole,) = load(RECIPE, [Span(epoch, 0, NUM_ROWS)])
    parts = load(RECIPE, spans)
    assert rows_of(parts) == whole.rows
    for name in RECIPE.columns:
        joined = b"".join(part.columns[name].tobytes() for part in parts)
        assert joined == whole.columns[name].tobytes()


def test_each_epoch_holds_every_row_once_in_another_order() -> None:
    first, second = (rows_of(load(RECIPE, epoch_of_spans(epoch, 6))) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))
    assert first != second


def test_spans_may_jump_to_and_fro_within_and_between_epochs() -> None:
    num_rows = 2 * BLOCK + 100
    dataset = Dataset.from_arrays({"x": np.arange(num_rows)})
    generator = np.random.default_rng(5)
    starts = generator.integers(0, num_rows - 50, 60).tolist()
    epochs = generator.integers(-1, 2, 60).tolist()
    spans = [Span(epoch, start, start + 50) for epoch, start in zip(epochs, starts, strict=True)]
    orders = {epoch: ShuffledOrder(num_rows, 3, epoch).rows(0, num_rows) for epoch in (-1, 0, 1)}
    recipe = Recipe(columns=("x",), seed=3, shuffle=True)
    with Loader(dataset, recipe, spans, max_rows=50) as loader:
        for batch in loader:
            span = batch.span
            expected = orders[span.epoch][span.start : span.stop].tolist()
            assert batch.columns["x"].tolist() == expected


@pytest.mark.parametrize("epoch", [-1, 0, 2**40])
def test_any_whole_number_may_be_the_first_epoch(epoch: int) -> None:
    (batch,) = load(RECIPE, [Span(epoch, 3, 20)])
    assert batch.rows == ShuffledOrder(NUM_ROWS, 7, epoch).rows(3, 20).tolist()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_buffers_are_used_again(depth: int) -> None:
    places: dict[str, set[int]] = {name: set() for name in RECIPE.columns}
    spans = epoch_of_spans(0, 1)
    with Loader(DATASET, RECIPE, spans, max_rows=1, depth=depth) as loader:
        for batch in loader:
            for name, tensor in batch.columns.items():
                places[name].add(tensor.data_ptr())
    assert {name: len(found) for name, found in places.items()} == {
        "image": depth + 1,
        "label": depth + 1,
    }


@dataclass
class Counted:
    """A transform that counts its batches, and can be made to fail."""

    num_words: int = 1
    fail_at: int | None = None
    count: int = 0
    threads: set[str] = field(default_factory=set)

    def __call__(self, rows: NDArray[Any], words: NDArray[np.uint64]) -> NDArray[Any]:
        assert words.shape == (len(rows), self.num_words)
        if self.count == self.fail_at:
            raise ZeroDivisionError(f"batch {self.count}")
        self.count += 1
        self.threads.add(threading.current_thread().name)
        return rows

    def wait_for(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while self.count < count:
            assert time.monotonic() < deadline, f"{self.count} of {count} batches within 20 s"
            time.sleep(0.001)


def counted_recipe(transform: Counted) -> Recipe:
    return Recipe(columns=("label",), augmented="label", transforms=(transform,))


@pytest.mark.parametrize("depth", [1, 2])
def test_the_thread_works_ahead_until_the_buffers_are_full_and_waits_for_them(depth: int) -> None:
    counted = Counted()
    spans = epoch_of_spans(0, 1)
    with Loader(DATASET, counted_recipe(counted), spans, max_rows=1, depth=depth) as loader:
        counted.wait_for(depth + 1)
        next(loader)
        time.sleep(0.02)
        assert counted.count == depth + 1
        next(loader)
        counted.wait_for(depth + 2)
        time.sleep(0.02)
        assert counted.count == depth + 2
    assert counted.threads == {"distrain-loader"}


def test_a_batch_stands_until_the_next_is_asked_for() -> None:
    counted = Counted()
    with Loader(DATASET, counted_recipe(counted), epoch_of_spans(0, 1), max_rows=1) as loader:
        for number, batch in enumerate(loader):
            counted.wait_for(min(number + 3, NUM_ROWS))
            assert batch.columns["label"].tolist() == [number % 3]


def test_an_error_in_the_thread_is_raised_by_the_next_that_would_have_given_its_batch() -> None:
    recipe = counted_recipe(Counted(fail_at=3))
    loader = Loader(DATASET, recipe, epoch_of_spans(0, 4), max_rows=4)
    assert [next(loader).span.start for _ in range(3)] == [0, 4, 8]
    with pytest.raises(ZeroDivisionError, match="batch 3"):
        next(loader)
    assert loader_threads() == []
    assert list(loader) == []


def test_an_error_of_whoever_names_the_spans_is_raised_too() -> None:
    def spans() -> Iterator[Span]:
        yield Span(0, 0, 1)
        raise RuntimeError("no more spans")

    with Loader(DATASET, LABELS, spans(), max_rows=1) as loader:
        next(loader)
        with pytest.raises(RuntimeError, match="no more spans"):
            next(loader)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("span", [Span(0, 35, 41), Span(0, -1, 3), Span(0, 5, 3), Span(0, 41, 41)])
@pytest.mark.parametrize("before", [[], [Span(0, 0, 5)]])
def test_a_span_outside_of_the_epoch_is_refused(
    shuffle: bool, span: Span, before: list[Span]
) -> None:
    recipe = Recipe(columns=("label",), shuffle=shuffle)
    with Loader(DATASET, recipe, [*before, span], max_rows=10) as loader:
        for _ in before:
            next(loader)
        with pytest.raises(IndexError) as caught:
            next(loader)
    assert str(caught.value) == (
        f"positions [{span.start}, {span.stop}) lie outside of [0, {NUM_ROWS})"
    )


def test_a_span_longer_than_the_buffers_is_refused() -> None:
    with (
        Loader(DATASET, LABELS, [Span(0, 0, 4), Span(0, 4, 9)], max_rows=4) as loader,
        pytest.raises(ValueError, match=r"start=4, stop=9\) has more than the 4 rows that buffers"),
    ):
        list(loader)


def test_an_unknown_column_is_refused_before_a_thread_starts() -> None:
    with pytest.raises(DataError, match="arrays has no column 'x'; it has"):
        Loader(DATASET, Recipe(columns=("label", "x")), [], max_rows=1)


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"depth is {depth}; it must be 1 or more"):
        Loader(DATASET, LABELS, [], max_rows=1, depth=depth)


def test_a_span_without_positions_is_a_batch_without_samples() -> None:
    empty, full = load(RECIPE, [Span(0, 12, 12), Span(0, 12, 14)])
    assert empty.rows == []
    assert empty.columns["image"].shape == (0, 2, 5, 4)
    assert empty.columns["label"].shape == (0,)
    assert full.columns["image"].shape == (2, 2, 5, 4)


def test_no_spans_are_no_batches() -> None:
    assert load(RECIPE, []) == []


def test_the_thread_ends_when_the_spans_do() -> None:
    loader = Loader(DATASET, LABELS, epoch_of_spans(0, 4), max_rows=4)
    assert len(list(loader)) == 10
    assert loader_threads() == []
    assert list(loader) == []


@pytest.mark.parametrize("num_taken", [0, 1, 5, 10])
def test_closing_in_the_middle_leaves_no_thread_and_no_more_batches(num_taken: int) -> None:
    loader = Loader(DATASET, LABELS, epoch_of_spans(0, 4), max_rows=4)
    for _ in range(num_taken):
        next(loader)
    assert len(loader_threads()) <= 1
    loader.close()
    assert loader_threads() == []
    assert list(loader) == []
    loader.close()


def test_an_endless_iterator_of_spans_ends_with_the_block() -> None:
    def endless() -> Iterator[Span]:
        while True:
            yield Span(0, 0, 1)

    with Loader(DATASET, LABELS, endless(), max_rows=1) as loader:
        for number, _ in enumerate(loader):
            if number == 20:
                break
    assert loader_threads() == []


def test_an_error_in_the_block_is_raised_and_closes_the_loader() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        Loader(DATASET, LABELS, epoch_of_spans(0, 1), max_rows=1),
    ):
        raise KeyboardInterrupt
    assert loader_threads() == []


def test_a_close_from_elsewhere_wakes_who_waits_for_a_batch() -> None:
    gate = threading.Event()

    def slow() -> Iterator[Span]:
        assert gate.wait(20)
        yield Span(0, 0, 1)

    loader = Loader(DATASET, LABELS, slow(), max_rows=1)
    left: list[Batch] = []
    consumer = threading.Thread(target=lambda: left.extend(loader), daemon=True)
    closer = threading.Thread(target=loader.close, daemon=True)
    consumer.start()
    time.sleep(0.05)  # until it waits
    closer.start()
    time.sleep(0.05)  # until it waits for the thread
    gate.set()
    for thread in (consumer, closer):
        thread.join(20)
        assert not thread.is_alive()
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
    with Loader(DATASET, RECIPE, spans, max_rows=7, pin_memory=True) as loader:
        for batch, expected in zip(loader, load(RECIPE, spans), strict=True):
            assert {tensor.data_ptr() for tensor in batch.columns.values()} <= set(pinned)
            for name, tensor in batch.columns.items():
                assert np.array_equal(tensor.numpy(), expected.columns[name])
    # Two columns in each of three buffers: what is not handed out is not pinned.
    assert len(pinned) == 6


def test_columns_are_tensors_of_the_stored_dtype() -> None:
    with Loader(DATASET, RECIPE, [Span(0, 0, 3)], max_rows=8) as loader:
        (columns,) = [batch.columns for batch in loader]
    assert {name: tensor.dtype for name, tensor in columns.items()} == {
        "image": torch.float32,
        "label": torch.int64,
    }
    assert all(tensor.is_contiguous() for tensor in columns.values())
