"""Folds of many rows at once, against the same tree walked one by one."""

from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distrain.parallel.normalize import merge_moments, moments_of
from distrain.parallel.split import owned_range
from distrain.parallel.stacked_fold import fold_stacked, stacked_root
from distrain.parallel.tree import Fold, Node, covering_nodes, root


def rows(num_leaves: int, words: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_leaves)
    spread = 10.0 ** (torch.rand(num_leaves, words, generator=generator) * 6 - 3)
    return torch.randn(num_leaves, words, generator=generator).double() * spread


@given(num_leaves=st.integers(1, 40), world_size=st.integers(1, 12))
def test_each_worker_folds_into_its_covering_nodes_and_all_to_the_sum_of_the_tree(
    num_leaves: int, world_size: int
) -> None:
    values = rows(num_leaves)
    nodes: dict[Node, torch.Tensor] = {}
    for rank in range(world_size):
        owned = owned_range(num_leaves, rank, world_size)
        own = values[owned.start : owned.stop]
        found = fold_stacked(own, owned.start, num_leaves, torch.add)
        assert list(found) == covering_nodes(owned, num_leaves)
        one_by_one = Fold(owned, num_leaves, torch.add)
        for row in own:
            one_by_one.push(row)
        for (node, row), (expected_node, expected) in zip(
            found.items(), one_by_one.nodes(), strict=True
        ):
            assert node == expected_node
            assert torch.equal(row, expected)
        nodes |= found
    total = stacked_root(nodes, num_leaves, torch.add)
    leaves = {(0, number): row for number, row in enumerate(values)}
    assert torch.equal(total, root(nodes, num_leaves, torch.add))
    assert torch.equal(total, root(leaves, num_leaves, torch.add))


@pytest.mark.parametrize("sizes", [(5,), (4, 4), (3, 1, 6), (7, 7, 7, 2), (1, 1, 1, 1, 1)])
def test_moments_of_parts_together_are_those_of_the_whole(sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64) + 1e6
    parts = torch.split(whole, list(sizes))
    local = torch.stack(
        [torch.cat([p[0], (p - p[0]).sum(0), (p - p[0]).square().sum(0)]) for p in parts]
    )
    together = reduce(merge_moments, moments_of(local, sizes))
    assert together[0] == sum(sizes)
    torch.testing.assert_close(together[1:4], whole.mean(0), rtol=1e-15, atol=0)
    expected = whole.var(0, correction=0) * sum(sizes)
    torch.testing.assert_close(together[4:], expected, rtol=1e-9, atol=0)
