"""Folds along the tree (rule 5) of many small rows at once: a level costs as much as one merge."""

from collections.abc import Callable, Mapping

import torch

from distrain.parallel.tree import Node, root

Merge = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Left and right siblings `(..., words)`, stacked, to their sums. Only of single additions,
multiplications and divisions: a fused one may round otherwise at the end of a row, and where a row
ends depends on how many lie together."""


def fold_stacked(
    rows: torch.Tensor, first: int, num_leaves: int, merge: Merge, *, level: int = 0
) -> dict[Node, torch.Tensor]:
    """Nodes `(level, first)` and those after it, `(k, words)`, folded into their covering nodes."""
    before: list[tuple[Node, torch.Tensor]] = []
    after: list[tuple[Node, torch.Tensor]] = []
    start, width = first, -(-num_leaves // (1 << level))
    while len(rows):
        if width == 1:
            before.append(((level, 0), rows[0]))
            break
        if start % 2:  # its left sibling is another worker's
            before.append(((level, start), rows[0]))
            rows, start = rows[1:], start + 1
        passed_up = rows[:0]
        if len(rows) % 2:
            last = start + len(rows) - 1
            if last + 1 == width:  # its right sibling would lie beyond the last leaf
                passed_up = rows[-1:]
            else:
                after.append(((level, last), rows[-1]))
            rows = rows[:-1]
        merged = merge(rows[0::2], rows[1::2]) if len(rows) else rows
        rows = torch.cat([merged, passed_up]) if len(passed_up) else merged
        start, level, width = start // 2, level + 1, -(-width // 2)
    return dict([*before, *reversed(after)])


def stacked_root(nodes: Mapping[Node, torch.Tensor], num_leaves: int, merge: Merge) -> torch.Tensor:
    """The sum over all leaves, `(words,)`, from nodes that cover them."""
    levels = {level for level, _ in nodes}
    if len(nodes) > 2 and len(levels) == 1:  # the usual case: all workers hold as much
        rows = torch.stack([nodes[node] for node in sorted(nodes)])
        nodes = fold_stacked(rows, 0, num_leaves, merge, level=levels.pop())
    return root(nodes, num_leaves, merge)
