"""Gradients that travel in shares: the bits are those of one process, whichever way they go."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from distrain.numerics import NORM_BLOCK
from distrain.parallel.gradients import gradient_parts
from distrain.parallel.payload import PayloadLayout
from distrain.parallel.reduction import TreeReduction
from distrain.parallel.route import (
    gathered_words,
    prime_factors,
    rounds,
    split_words,
    whole_words,
)
from distrain.parallel.summing import SumOptions
from distrain.parallel.traffic import Group, Sent, sent_by
from distrain.parallel.transport import SharedTransport
from tests.thread_workers import ThreadCommunicator, ThreadGroup, on_threads

CPU = torch.device("cpu")


def drawn(num_leaves: int, num_words: int, dtype: torch.dtype) -> torch.Tensor:
    """Gradients over six decades: the order of additions shows in their last bits."""
    draw = np.random.default_rng((num_leaves, num_words))
    values = draw.standard_normal((num_leaves, num_words)) * 10.0 ** draw.uniform(-3, 3, num_words)
    return torch.from_numpy(values).to(torch.float32).to(dtype)


def halves(rows: torch.Tensor) -> torch.Tensor:
    """Rule 5, by recursion; bfloat16 rows are rounded at each node (rule 7)."""
    if len(rows) == 1:
        return rows[0]
    half = 1 << (len(rows) - 1).bit_length() - 1
    return halves(rows[:half]) + halves(rows[half:])


def summed(
    leaves: torch.Tensor,
    group: ThreadGroup,
    parts: Sequence[range],
    *,
    early: int = 0,
    shares: bool = False,
) -> list[torch.Tensor]:
    """By worker, the gradient after the exchange; `early` parts travel before the last leaf is in.

    With `shares` each worker has its own, and what `spread` then makes of them is returned.
    """

    def work(communicator: ThreadCommunicator) -> torch.Tensor:
        layout = PayloadLayout(1, 0, 0, leaves.shape[1], leaves.dtype, num_flags=group.size)
        reduction = TreeReduction(layout, communicator, CPU, parts=parts, leaves_shares=shares)
        owned = reduction.begin(len(leaves))
        for number in owned:
            leaf = reduction.leaf()
            last = number == owned.stop - 1 and early > 0 and group.size > 1
            if last:
                reduction.push(leaf, complete=False)
            for index, part in enumerate(parts):
                leaf.gradient[part.start : part.stop] = leaves[number, part.start : part.stop]
                if last and index < early:
                    reduction.part_ready(index)
            if not parts:
                leaf.gradient.copy_(leaves[number])
            leaf.float64[0] = number
            if not last:
                reduction.push(leaf)
        found = reduction.sum([communicator.rank])
        assert found.total.float64[0] == sum(range(len(leaves)))
        assert [flag for (flag,) in found.flags] == list(range(group.size))
        if shares and parts and group.size > 1:
            reduction.shared.spread(parts, found.gradient)
        return found.gradient.clone()

    return on_threads(group, work)


@given(
    num_leaves=st.integers(1, 13),
    world_size=st.integers(1, 8),
    local_size=st.integers(1, 4),
    blocks=st.integers(1, 7),
    part_blocks=st.integers(1, 4),
    whole=st.booleans(),
    at_once=st.booleans(),
    shares=st.booleans(),
    early=st.integers(0, 7),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@example(8, 4, 2, 3, 1, False, False, False, 2, torch.float32)  # two hosts, aligned
@example(8, 3, 3, 5, 2, False, False, True, 0, torch.float32)  # unaligned ranges, in shares
@example(2, 7, 7, 2, 1, False, True, False, 1, torch.float32)  # workers without a leaf
@settings(deadline=None, max_examples=150)
def test_every_transport_gives_the_bits_of_the_fold_in_one_process(
    num_leaves: int,
    world_size: int,
    local_size: int,
    blocks: int,
    part_blocks: int,
    whole: bool,
    at_once: bool,
    shares: bool,
    early: int,
    dtype: torch.dtype,
) -> None:
    num_words = blocks * NORM_BLOCK
    leaves = drawn(num_leaves, num_words, dtype)
    parts = gradient_parts(num_words, num_words if whole else 0, part_blocks * NORM_BLOCK)
    group = ThreadGroup(world_size, local_size, at_once=at_once)
    expected = halves(leaves)
    for found in summed(leaves, group, parts, early=min(early, len(parts)), shares=shares):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("num_words", [16, 4096, 4096 * 3])
def test_more_workers_than_blocks_leave_some_without_a_share(num_words: int) -> None:
    leaves = drawn(8, num_words, torch.float32)
    parts = gradient_parts(num_words, 0, 4096)
    for found in summed(leaves, ThreadGroup(8, at_once=False), parts, shares=True):
        assert torch.equal(found, halves(leaves))


def test_bfloat16_sums_are_rounded_at_every_node_and_near_the_float32_sums() -> None:
    leaves = drawn(8, 4096, torch.float32)
    (rounded,) = summed(leaves.bfloat16(), ThreadGroup(1), ())
    exact = leaves.double().sum(0)
    error = (rounded.double() - exact).norm() / exact.norm()
    assert 1e-4 < error < 1e-2


@pytest.mark.parametrize(
    ("world_size", "local_size", "met"),
    [
        (4, 4, [[0, 1], [0, 2]]),
        (4, 2, [[0, 1], [0, 2]]),
        (6, 3, [[0, 1, 2], [0, 3]]),
        (6, 2, [[0, 1], [0, 2, 4]]),
        (6, 4, [[0, 1], [0, 2, 4]]),  # hosts of unlike size: as if all were one
        (7, 7, [[0, 1, 2, 3, 4, 5, 6]]),
        (1, 1, []),
    ],
)
def test_the_workers_of_a_host_meet_before_anything_leaves_it(
    world_size: int, local_size: int, met: list[list[int]]
) -> None:
    assert [list(one.members) for one in rounds(0, world_size, local_size)] == met


@given(world_size=st.integers(1, 40), local_size=st.integers(1, 8))
def test_after_all_rounds_every_worker_has_met_the_leaves_of_all(
    world_size: int, local_size: int
) -> None:
    for rank in range(world_size):
        known = {rank}
        for one in rounds(rank, world_size, local_size):
            assert rank == one.members[one.digit]
            assert known == set(one.group(rank))
            known = {other for member in one.members for other in one.group(member)}
            assert known == set(one.union)
        assert known == set(range(world_size))


@given(st.integers(1, 10_000))
def test_prime_factors_multiply_to_the_number(number: int) -> None:
    found = prime_factors(number)
    assert np.prod(found, dtype=np.int64) == number
    assert all(all(factor % d for d in range(2, factor)) for factor in found)


@given(world_size=st.integers(1, 8), start=st.integers(0, 5), length=st.integers(1, 40_000))
def test_the_shares_of_a_part_are_whole_blocks_and_make_up_the_part(
    world_size: int, start: int, length: int
) -> None:
    part = range(start * NORM_BLOCK, start * NORM_BLOCK + length)
    group = ThreadGroup(world_size)
    shares = [
        SharedTransport(ThreadCommunicator(group, rank)).share(part) for rank in range(world_size)
    ]
    assert all(share.start % NORM_BLOCK == 0 for share in shares if share)
    assert sorted(word for share in shares for word in share) == list(part)


@pytest.mark.parametrize(
    ("world_size", "num_leaves", "sent"),
    [
        (2, 8, 2 * 4096),  # half to the other, and half of the total back
        (4, 8, 6 * 4096),  # 2 (W - 1) / W of 4 x 4096
        (3, 8, None),
        (4, 4, 6 * 4096),
    ],
)
def test_what_a_plan_says_of_the_bytes_is_what_travels(
    world_size: int, num_leaves: int, sent: int | None
) -> None:
    num_words = world_size * 4096
    leaves = drawn(num_leaves, num_words, torch.float32)

    def work(communicator: ThreadCommunicator) -> int:
        layout = PayloadLayout(0, 0, 0, num_words, num_flags=world_size)
        parts = gradient_parts(num_words, 0, num_words)
        reduction = TreeReduction(layout, communicator, CPU, parts=parts)
        for number in reduction.begin(num_leaves):
            leaf = reduction.leaf()
            leaf.gradient.copy_(leaves[number])
            reduction.push(leaf)
        reduction.sum([0])
        other = reduction.shared.communicator
        assert isinstance(other, ThreadCommunicator)
        return other.num_bytes

    found = on_threads(ThreadGroup(world_size, at_once=False), work)
    assert max(found) == 4 * sum(split_words(num_words, num_leaves, world_size))
    if sent is not None:
        assert set(found) == {4 * sent}


def test_unaligned_ranges_send_more() -> None:
    assert split_words(3 * 4096, 12, 3) == (2 * 4096, 2 * 4096)
    assert split_words(3 * 4096, 8, 3) == (4 * 4096, 2 * 4096)
    assert whole_words(100, 64, 3) == 2 * 5 * 100  # up to 2 log2 M partial sums, to each other
    assert whole_words(100, 64, 2) == 100
    assert whole_words(100, 64, 4) == 2 * 100
    assert whole_words(100, 64, 3, aligned=True) == 2 * 100
    assert split_words(3 * 4096, 8, 3, aligned=True) == (2 * 4096, 2 * 4096)
    assert gathered_words(100, 64, 3) == 2 * 5 * 100
    assert gathered_words(100, 64, 4) == gathered_words(100, 8, 4) == 3 * 100


@pytest.mark.parametrize("shard_optimizer", [False, True])
def test_what_a_group_would_send_follows_from_sizes_alone(shard_optimizer: bool) -> None:
    options = SumOptions(shard_optimizer=shard_optimizer)
    long = PayloadLayout(2, 2, 0, 2**22)
    head, gradient = long.head.num_bytes, 4 * 2**22
    for at_once in (False, True):
        assert sent_by(Group(1, 1, at_once=at_once), long, 8, options) == Sent(0, 0)
    pairs = sent_by(Group(4, 4, at_once=False), long, 8, options)
    assert pairs == Sent(2 * head + 2 * gradient * 3 // 4, 0)  # shares of sums, then of totals
    gathered = sent_by(Group(4, 4, at_once=True), long, 8, options)
    assert gathered == Sent(3 * head + 2 * gradient * 3 // 4, 0)
    three = sent_by(Group(3, 3, at_once=False), long, 8, options)
    assert three.unaligned == pytest.approx(2 * head + gradient * 2 / 3, abs=8)


def test_short_gradients_travel_with_the_rest() -> None:
    short = PayloadLayout(2, 2, 0, 4096)
    whole = sent_by(Group(2, 2, at_once=False), short, 8, SumOptions())
    assert whole == Sent(short.num_bytes, 0)
    sharded = sent_by(Group(2, 2, at_once=False), short, 8, SumOptions(shard_optimizer=True))
    assert sharded.num_bytes == short.num_bytes + 4 * 4096 // 2  # and half of the new weights
