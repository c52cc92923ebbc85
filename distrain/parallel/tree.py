"""The one tree along which everything is summed (rule 5), as pure logic.

Node (level, i) covers the leaves [i * 2^level, (i + 1) * 2^level). Only siblings, (l, 2i) and
(l, 2i + 1), are ever merged, left with right; where the right one would lie beyond the last leaf,
the left one passes up unchanged. For 6 leaves:

    level 3                 (0)
    level 2         (0)             (1)          <- (1) is (1, 2), passed up
    level 1     (0)     (1)     (2)
    level 0    0   1   2   3   4   5

A worker that owns a range of leaves folds them as far as this allows; `folded` goes on with what
several workers hold, and `root` ends with what all of them do. So the sum's bits depend on the
number of leaves alone.
"""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

Node = tuple[int, int]
T = TypeVar("T")


def covering_nodes(leaves: range, num_leaves: int) -> list[Node]:
    """The fewest nodes that cover a range of leaves, in order: what a worker has to send.

    A range that reaches the last leaf may end in a node that the last leaf cuts short.
    """
    nodes: list[Node] = []
    at = leaves.start
    while at < leaves.stop:
        level = 0
        while (
            not at % (2 << level) and _end(level + 1, at >> (level + 1), num_leaves) <= leaves.stop
        ):
            if 1 << level >= num_leaves:
                break
            level += 1
        nodes.append((level, at >> level))
        at = _end(level, at >> level, num_leaves)
    return nodes


def _end(level: int, index: int, num_leaves: int) -> int:
    return min((index + 1) << level, num_leaves)


class Fold(Generic[T]):
    """Folds a range of leaves, pushed in order, into its covering nodes.

    A stack as in a binary counter. "Equal levels merge" would not do for a range that starts
    unaligned: leaves 1 and 2 are neighbours and no siblings.
    """

    def __init__(self, leaves: range, num_leaves: int, merge: Callable[[T, T], T]) -> None:
        """Expects the leaves in order; `merge(left, right)` may reuse either argument."""
        self._next, self._stop, self._num_leaves = leaves.start, leaves.stop, num_leaves
        self._merge = merge
        self._stack: list[tuple[Node, T]] = []

    def push(self, value: T) -> None:
        """Takes the next leaf's value."""
        assert self._next < self._stop, "more leaves than the range has"
        node: Node = (0, self._next)
        self._next += 1
        while True:
            level, index = node
            if index % 2 and self._stack and self._stack[-1][0] == (level, index - 1):
                value = self._merge(self._stack.pop()[1], value)
            elif index % 2 or 1 << level >= self._num_leaves or not self._is_cut_short(node):
                break
            node = (level + 1, index // 2)
        self._stack.append((node, value))

    def _is_cut_short(self, node: Node) -> bool:
        """Whether the node's right sibling would lie beyond the last leaf."""
        level, index = node
        return (index + 1) << level >= self._num_leaves

    def nodes(self) -> list[tuple[Node, T]]:
        """The partial sums with their nodes, once all leaves were pushed."""
        assert self._next == self._stop, "fewer leaves than the range has"
        return list(self._stack)


def folded(
    nodes: Mapping[Node, T], leaves: range, num_leaves: int, merge: Callable[[T, T], T]
) -> list[tuple[Node, T]]:
    """The covering nodes of `leaves` from those of neighbouring ranges that make it up.

    What several workers hold together, folded as far as the tree allows.
    """

    def value(level: int, index: int) -> T:
        if (level, index) in nodes:
            return nodes[level, index]
        left = value(level - 1, 2 * index)
        if (2 * index + 1) << (level - 1) >= num_leaves:
            return left
        return merge(left, value(level - 1, 2 * index + 1))

    return [(node, value(*node)) for node in covering_nodes(leaves, num_leaves)]


def root(nodes: Mapping[Node, T], num_leaves: int, merge: Callable[[T, T], T]) -> T:
    """The sum over all leaves from the covering nodes of ranges that make up the whole."""
    return folded(nodes, range(num_leaves), num_leaves, merge)[0][1]
