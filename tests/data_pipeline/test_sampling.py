"""Sampling with replacement and by class, against Python's integers and plain counting."""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from data_pipeline import DataError, Dataset
from data_pipeline.order import (
    BLOCK,
    BalancedOrder,
    BootstrapOrder,
    Order,
    SequentialOrder,
    ShuffledOrder,
    rows_by_class,
)
from data_pipeline.random import derive_key
from data_pipeline.sampling import Kind, Sampling

SEEDS = st.integers(min_value=0, max_value=2**63)
EPOCHS = st.integers(min_value=0, max_value=10**6)
WORD = 2**64
HUGE = 10**10


def split_mix_64(state: int) -> int:
    """One word of SplitMix64, as its authors' public code in C has it, in whole numbers."""
    word = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def drawn_in_python(num_rows: int, seed: int, epoch: int, positions: range) -> list[int]:
    key = derive_key("bootstrap", seed, epoch) % WORD
    words = [split_mix_64((key + place * 0x9E3779B97F4A7C15) % WORD) for place in positions]
    return [word * num_rows >> 64 for word in words]


def of_labels(labels: NDArray[np.int64], seed: int = 0, epoch: int = 0) -> BalancedOrder:
    return BalancedOrder(len(labels), seed, epoch, rows_by_class(labels, int(labels.max()) + 1))


def whole(order: Order) -> NDArray[np.int64]:
    return order.rows(0, order.num_rows)


@given(
    num_rows=st.one_of(st.integers(1, 2**63 - 1), st.sampled_from([1, 2, 2**32, 2**32 + 1])),
    seed=SEEDS,
    epoch=EPOCHS,
    data=st.data(),
)
@settings(deadline=None, max_examples=80)
def test_a_bootstrap_is_split_mix_64_scaled_by_lemires_product(
    num_rows: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, num_rows - 1))
    stop = min(start + data.draw(st.integers(0, 20)), num_rows)
    rows = BootstrapOrder(num_rows, seed, epoch).rows(start, stop)
    assert rows.dtype == np.int64
    assert rows.tolist() == drawn_in_python(num_rows, seed, epoch, range(start, stop))


def test_a_bootstrap_holds_63_percent_of_the_rows() -> None:
    shares = [len(np.unique(whole(BootstrapOrder(20_000, 3, e)))) / 20_000 for e in range(10)]
    # The share has mean 1 - 1/e and, of N rows, variance (1/e - 2/e^2) / N.
    deviation = np.sqrt((np.exp(-1) - 2 * np.exp(-2)) / 20_000)
    assert np.abs(np.array(shares) - (1 - np.exp(-1))).max() < 5 * deviation


@pytest.mark.parametrize("num_rows", [2, 7, 64, 1_000])
def test_every_row_is_equally_likely_in_a_bootstrap(num_rows: int) -> None:
    orders = [whole(BootstrapOrder(num_rows, 1, epoch)) for epoch in range(200_000 // num_rows)]
    counts = np.bincount(np.concatenate(orders), minlength=num_rows)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_pairs_of_neighbours_in_a_bootstrap_are_equally_likely() -> None:
    rows = whole(BootstrapOrder(400_000, 5, 0)) * 30 // 400_000
    pairs = np.bincount(rows[:-1:2] * 30 + rows[1::2], minlength=900)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_each_epoch_and_seed_has_a_bootstrap_of_its_own() -> None:
    found = [
        Counter(whole(BootstrapOrder(500, s, e)).tolist()) for s, e in ((0, 0), (0, 1), (1, 0))
    ]
    assert found[0] != found[1]
    assert found[0] != found[2]
    assert found[1] != found[2]


@given(num_rows=st.integers(50, 3_000), seed=SEEDS, epoch=st.integers(1, 10**6))
@settings(deadline=None, max_examples=40)
def test_a_bootstrap_that_is_not_resampled_has_the_same_rows_in_another_order(
    num_rows: int, seed: int, epoch: int
) -> None:
    first = whole(BootstrapOrder(num_rows, seed, 0, resampled=False))
    later = whole(BootstrapOrder(num_rows, seed, epoch, resampled=False))
    drawn = drawn_in_python(num_rows, seed, 0, range(num_rows))
    assert sorted(later.tolist()) == sorted(first.tolist()) == sorted(drawn)
    assert not np.array_equal(first, later)


LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=120).map(np.array)


@given(labels=LABELS, seed=SEEDS, epoch=EPOCHS)
@settings(deadline=None, max_examples=80)
def test_each_run_of_as_many_positions_as_classes_has_one_of_each(
    labels: NDArray[np.int64], seed: int, epoch: int
) -> None:
    classes = sorted(set(labels.tolist()))
    visited = labels[whole(of_labels(labels, seed, epoch))].tolist()
    count = len(classes)
    full = len(visited) // count * count
    for start in range(0, full, count):
        assert sorted(visited[start : start + count]) == classes
    assert len(set(visited[full:])) == len(visited) - full


@given(labels=LABELS, seed=SEEDS, epoch=EPOCHS)
@settings(deadline=None, max_examples=80)
def test_all_rows_of_a_class_come_before_one_comes_again(
    labels: NDArray[np.int64], seed: int, epoch: int
) -> None:
    rows = whole(of_labels(labels, seed, epoch))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        visits = rows[labels[rows] == label]
        for start in range(0, len(visits), len(members)):
            turn = visits[start : start + len(members)].tolist()
            assert len(set(turn)) == len(turn)


@given(labels=LABELS, seed=SEEDS, cuts=st.lists(st.integers(0, 120), max_size=6))
@settings(deadline=None, max_examples=80)
def test_any_range_of_a_balanced_order_is_a_piece_of_the_whole(
    labels: NDArray[np.int64], seed: int, cuts: list[int]
) -> None:
    order = of_labels(labels, seed)
    edges = [0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]
    pieces = [order.rows(start, stop) for start, stop in pairwise(edges)]
    assert all(piece.dtype == np.int64 for piece in pieces)
    assert np.concatenate(pieces).tolist() == whole(order).tolist()


def test_the_classes_stand_in_every_order_equally_often() -> None:
    labels = np.arange(18_000) % 3
    visited = labels[whole(of_labels(labels, 4))].reshape(-1, 3)
    counts = Counter(map(tuple, visited.tolist()))
    assert len(counts) == 6
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3


def test_a_rare_class_comes_as_often_as_a_frequent_one_and_each_member_equally_often() -> None:
    labels = np.array([0] * 970 + [1] * 30)
    rows = whole(of_labels(labels, 2, 5))
    assert np.bincount(labels[rows]).tolist() == [500, 500]
    assert set(np.bincount(rows, minlength=1_000)[970:].tolist()) == {16, 17}


def test_a_class_without_rows_is_left_out() -> None:
    found = rows_by_class(np.array([3, 1, 1, 3, 3]), 6)
    assert [rows.tolist() for rows in found] == [[1, 2], [0, 3, 4]]
    rows = whole(BalancedOrder(5, 0, 0, found))
    assert set(rows.tolist()) <= set(range(5))


def test_balanced_epochs_and_seeds_differ() -> None:
    labels = np.arange(300) % 7
    found = [whole(of_labels(labels, s, e)).tolist() for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(rows) for rows in found}) == 3


MEMBERS = tuple(np.arange(first, HUGE, HUGE // 1_000) for first in range(3))


@pytest.mark.parametrize(
    "order",
    [
        BootstrapOrder(HUGE, 1, 1),
        BootstrapOrder(HUGE, 1, 1, resampled=False),
        BalancedOrder(HUGE, 1, 1, MEMBERS),
    ],
    ids=["bootstrap", "one bootstrap", "balanced"],
)
def test_ten_thousand_million_rows_are_served_anywhere_in_flat_memory(order: Order) -> None:
    order.rows(0, 10)
    peaks = []
    for start in (0, HUGE // 3, HUGE - BLOCK):
        tracemalloc.start()
        try:
            rows = order.rows(start, start + BLOCK)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert 0 <= rows.min() <= rows.max() < HUGE
        assert rows[-5:].tolist() == order.rows(start + BLOCK - 5, start + BLOCK).tolist()
    assert max(peaks) < 32 * 8 * BLOCK


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 11), (11, 11)])
@pytest.mark.parametrize(
    "order", [BootstrapOrder(10, 0, 0), of_labels(np.arange(10) % 2)], ids=["bootstrap", "balanced"]
)
def test_positions_outside_of_the_epoch_are_refused(order: Order, start: int, stop: int) -> None:
    with pytest.raises(IndexError, match=r"lie outside of \[0, 10\)"):
        order.rows(start, stop)


def test_what_is_drawn_never_changes_between_releases() -> None:
    # Recorded. A run that is resumed under a newer release must go on where it stood.
    assert whole(BootstrapOrder(10, 0, 0)).tolist() == [2, 9, 4, 2, 4, 7, 3, 3, 4, 8]
    assert whole(BootstrapOrder(10, 0, 3, resampled=False)).tolist() == [
        4,
        9,
        4,
        2,
        3,
        8,
        2,
        4,
        3,
        7,
    ]
    few, many = np.array([0] * 7 + [1] * 3), np.array([0] * 70 + [1] * 3)
    assert whole(of_labels(few)).tolist() == [3, 9, 7, 4, 0, 8, 2, 7, 6, 8]
    assert of_labels(many).rows(0, 10).tolist() == [35, 72, 70, 64, 9, 71, 25, 70, 23, 71]


LABEL = (np.arange(3 * BLOCK) ** 2 % 7).astype(np.int64)
DATASET = Dataset.from_arrays({"x": np.arange(3 * BLOCK), "y": LABEL}, classes={"y": "abcdefg"})


@pytest.mark.parametrize(
    "kind", ["stored", "shuffled", "with_replacement", "bootstrap", "balanced"]
)
def test_a_data_set_is_sampled_in_that_order_wherever_one_looks(kind: Kind) -> None:
    count = 3 * BLOCK
    orders: dict[str, Order] = {
        "stored": SequentialOrder(count),
        "shuffled": ShuffledOrder(count, 9, 2),
        "with_replacement": BootstrapOrder(count, 9, 2),
        "bootstrap": BootstrapOrder(count, 9, 2, resampled=False),
        "balanced": of_labels(LABEL, 9, 2),
    }
    sampling = Sampling(DATASET, kind, seed=9, label="y")
    expected = whole(orders[kind])
    for start in (BLOCK - 3, 0, 2 * BLOCK, BLOCK - 3, count - 7):
        for length in (0, 1, 7):
            rows = sampling.rows(2, start, start + length)
            assert rows.tolist() == expected[start : start + length].tolist()


@pytest.mark.parametrize("label", [None, "x"])
def test_balancing_by_what_is_no_label_is_refused(label: str | None) -> None:
    with pytest.raises(DataError, match=rf"needs a column of class labels, and {label!r} of arr"):
        Sampling(DATASET, "balanced", label=label)


def test_an_unknown_kind_of_sampling_is_refused_with_those_there_are() -> None:
    with pytest.raises(DataError, match="'shufled'; it can be stored, shuffled, with_repl"):
        Sampling(DATASET, "shufled")  # type: ignore[arg-type]
