"""The tree of rule 5, with strings for values, so that the order of every addition is seen."""

import math
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.parallel.split import owned_range
from distrain.parallel.tree import Fold, Node, covering_nodes, root


def merge(left: str, right: str) -> str:
    return f"({left} {right})"


def expected(num_leaves: int) -> str:
    """The definition, written down: halve the span, and pass up what has no right sibling."""

    def value(first: int, size: int) -> str:
        if size == 1:
            return str(first)
        half = size // 2
        if first + half >= num_leaves:
            return value(first, half)
        return merge(value(first, half), value(first + half, half))

    size = 1
    while size < num_leaves:
        size *= 2
    return value(0, size)


def fold(leaves: range, num_leaves: int) -> list[tuple[Node, str]]:
    found = Fold(leaves, num_leaves, merge)
    for leaf in leaves:
        found.push(str(leaf))
    return found.nodes()


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[range]]:
    """Leaves, cut anywhere into consecutive ranges, some of them empty."""
    num_leaves = draw(st.integers(1, 70))
    cuts = draw(st.lists(st.integers(0, num_leaves), max_size=9))
    return num_leaves, [range(*pair) for pair in pairwise([0, *sorted(cuts), num_leaves])]


@pytest.mark.parametrize(
    ("num_leaves", "tree"),
    [
        (1, "0"),
        (2, "(0 1)"),
        (3, "((0 1) 2)"),
        (5, "(((0 1) (2 3)) 4)"),
        (6, "(((0 1) (2 3)) (4 5))"),
        (7, "(((0 1) (2 3)) ((4 5) 6))"),
        (8, "(((0 1) (2 3)) ((4 5) (6 7)))"),
    ],
)
def test_one_worker_adds_in_the_order_drawn_by_hand(num_leaves: int, tree: str) -> None:
    assert root(dict(fold(range(num_leaves), num_leaves)), num_leaves, merge) == tree


@given(split=splits())
@settings(deadline=None, max_examples=300)
def test_any_split_gives_the_parentheses_of_the_definition(split: tuple[int, list[range]]) -> None:
    num_leaves, ranges = split
    nodes = {node: value for leaves in ranges for node, value in fold(leaves, num_leaves)}
    assert root(nodes, num_leaves, merge) == expected(num_leaves)


@given(num_leaves=st.integers(1, 200), world_size=st.integers(1, 200))
@settings(deadline=None)
def test_the_split_over_workers_gives_the_parentheses_of_the_definition(
    num_leaves: int, world_size: int
) -> None:
    nodes: dict[Node, str] = {}
    for rank in range(world_size):
        nodes |= dict(fold(owned_range(num_leaves, rank, world_size), num_leaves))
    assert root(nodes, num_leaves, merge) == expected(num_leaves)


@given(split=splits())
@settings(deadline=None, max_examples=300)
def test_a_fold_leaves_the_covering_nodes(split: tuple[int, list[range]]) -> None:
    num_leaves, ranges = split
    for leaves in ranges:
        assert [node for node, _ in fold(leaves, num_leaves)] == covering_nodes(leaves, num_leaves)


@given(split=splits())
@settings(deadline=None, max_examples=300)
def test_only_siblings_merge(split: tuple[int, list[range]]) -> None:
    num_leaves, ranges = split

    def join(left: range, right: range) -> range:
        size = right.start - left.start
        assert size.bit_count() == 1, "a left sibling is whole"
        assert left.start % (2 * size) == 0, "a left sibling stands at an even index"
        assert left.stop == right.start
        assert right.stop == min(right.start + size, num_leaves)
        return range(left.start, right.stop)

    nodes: dict[Node, range] = {}
    for leaves in ranges:
        found = Fold(leaves, num_leaves, join)
        for leaf in leaves:
            found.push(range(leaf, leaf + 1))
        nodes |= dict(found.nodes())
    assert root(nodes, num_leaves, join) == range(num_leaves)


def test_neighbours_of_equal_level_that_are_no_siblings_stay_apart() -> None:
    assert fold(range(1, 3), 4) == [((0, 1), "1"), ((0, 2), "2")]
    assert fold(range(2, 6), 8) == [((1, 1), "(2 3)"), ((1, 2), "(4 5)")]


@pytest.mark.parametrize("num_leaves", [*range(1, 13), 16])
def test_the_covering_nodes_are_the_fewest_there_are(num_leaves: int) -> None:
    @cache
    def fewest(start: int, stop: int) -> int:
        """By trying: a node may begin at `start` if it is aligned, and end at the last leaf."""
        if start == stop:
            return 0
        ends = [
            min(start + size, num_leaves)
            for size in (1, 2, 4, 8, 16)
            if start % size == 0 and min(start + size, num_leaves) <= stop
        ]
        return 1 + min(fewest(end, stop) for end in ends)

    for start in range(num_leaves):
        for stop in range(start, num_leaves + 1):
            nodes = covering_nodes(range(start, stop), num_leaves)
            assert len(nodes) == fewest(start, stop)
            leaves = [
                leaf
                for level, index in nodes
                for leaf in range(index << level, min((index + 1) << level, num_leaves))
            ]
            assert leaves == list(range(start, stop))


@given(num_leaves=st.integers(2, 2_000), data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_worker_sends_at_most_2_log2_of_the_leaves(num_leaves: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, num_leaves))
    stop = data.draw(st.integers(start, num_leaves))
    bound = 2 * math.ceil(math.log2(num_leaves))
    assert len(covering_nodes(range(start, stop), num_leaves)) <= bound


def test_of_3_workers_on_64_leaves_one_sends_5_and_of_4_each_sends_1() -> None:
    def most(world_size: int) -> int:
        return max(
            len(covering_nodes(owned_range(64, rank, world_size), 64)) for rank in range(world_size)
        )

    assert most(3) == 5
    assert [most(world_size) for world_size in (1, 2, 4, 8, 16, 32, 64)] == [1] * 7


def test_an_empty_range_sends_nothing() -> None:
    assert covering_nodes(range(3, 3), 8) == []
    assert fold(range(3, 3), 8) == []


def test_more_or_fewer_leaves_than_announced_are_our_own_mistake() -> None:
    found = Fold(range(1), 2, merge)
    with pytest.raises(AssertionError, match="fewer leaves"):
        found.nodes()
    found.push("0")
    with pytest.raises(AssertionError, match="more leaves"):
        found.push("1")
