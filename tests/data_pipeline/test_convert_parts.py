"""Parts, duplicates and classes: functions of the rows' keys and names alone."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.conversion.parts import by_class, by_content, duplicates, sorted_classes


def keys_of(rows: Sequence[int]) -> Any:
    words = [hashlib.blake2b(str(row).encode(), digest_size=16).digest() for row in rows]
    return np.frombuffer(b"".join(words), "<u8").reshape(-1, 2)


@given(
    some=st.sets(st.integers(0, 10**6), min_size=1, max_size=60),
    more=st.sets(st.integers(0, 10**6), max_size=60),
    share=st.floats(0.01, 0.45),
)
@settings(deadline=None, max_examples=100)
def test_rows_that_are_added_move_no_other_to_another_part(
    some: set[int], more: set[int], share: float
) -> None:
    fractions = {"validation": share, "test": share}
    before, both = sorted(some), sorted(some | more, reverse=True)
    part_before = by_content(keys_of(before), fractions)
    part_after = dict(zip(both, by_content(keys_of(both), fractions).tolist(), strict=True))
    assert part_before.tolist() == [part_after[row] for row in before]


@pytest.mark.parametrize("shares", [{"test": 0.5}, {"validation": 0.1, "test": 0.2}])
def test_shares_are_about_those_asked_for(shares: dict[str, float]) -> None:
    counts = np.bincount(by_content(keys_of(range(20_000)), shares), minlength=len(shares) + 1)
    for number, share in enumerate(shares.values(), start=1):
        assert counts[number] / 20_000 == pytest.approx(share, abs=0.015)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=80))
@settings(deadline=None, max_examples=100)
def test_a_stratified_split_gives_each_class_its_exact_share(labels: list[int]) -> None:
    numbers = np.array(labels, np.int64)
    part_of = by_class(keys_of(range(len(labels))), numbers, {"validation": 0.25, "test": 0.5})
    for label in set(labels):
        counts = np.bincount(part_of[numbers == label], minlength=3)
        count = counts.sum()
        first, second = np.floor(0.25 * count + 0.5), np.floor(0.75 * count + 0.5)
        assert counts.tolist() == [count - second, first, second - first]


@given(rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=150)
def test_duplicates_are_those_of_a_plain_loop(rows: list[tuple[int, int]]) -> None:
    keys = np.array([[key // 2, key] for key, _ in rows], np.uint64)
    part_of = np.array([part for _, part in rows], np.int16)
    within = across = 0
    named, first, seen = [], {}, set()
    for number, (key, part) in enumerate(rows):
        if key not in first:
            first[key] = number
        elif (key, part) in seen:
            within += 1
        else:
            across += 1
            named.append((number, first[key]))
        seen.add((key, part))
    found = duplicates(keys, part_of, most=3)
    assert (found.within, found.across, found.named) == (within, across, tuple(named[:3]))


def test_classes_are_sorted_as_numbers_where_all_are() -> None:
    assert sorted_classes(["10", "9", "-1", "9"]) == ("-1", "9", "10")
    assert sorted_classes(["1.5", "10", "2"]) == ("1.5", "2", "10")
    assert sorted_classes(["b", "10", "9"]) == ("10", "9", "b")
