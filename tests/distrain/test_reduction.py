"""Sums over workers, who are threads here: the bits must not tell how many there were."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from distrain.parallel.payload import Payload, PayloadLayout, new_payload
from distrain.parallel.reduction import Reduced, TreeReduction
from tests.thread_workers import ThreadCommunicator, ThreadGroup, on_threads

CPU = torch.device("cpu")


class Leaves:
    """What the micro-batches of one step give: `(M, words)` of each kind."""

    def __init__(self, num_leaves: int, *, seed: int = 0, words: int = 37) -> None:
        draw = np.random.default_rng((seed, num_leaves))
        # Magnitudes over six decades: the order of additions then shows in the last bits.
        spread = 10.0 ** draw.uniform(-3, 3, (num_leaves, words))
        self.float32 = (draw.standard_normal((num_leaves, words)) * spread).astype(np.float32)
        self.float64 = draw.standard_normal((num_leaves, 5)) * spread[:, :5]
        self.int64 = draw.integers(0, 2**58 // num_leaves, (num_leaves, 3))
        self.layout = PayloadLayout(5, 3, words)

    def __len__(self) -> int:
        return len(self.float32)


Found = TypeVar("Found")


def filled(leaf: Payload, leaves: Leaves, number: int) -> Payload:
    leaf.float32.copy_(torch.from_numpy(leaves.float32[number]))
    leaf.float64.copy_(torch.from_numpy(leaves.float64[number]))
    leaf.int64.copy_(torch.from_numpy(leaves.int64[number]))
    return leaf


def reduced(
    steps: list[Leaves],
    world_size: int,
    flags: Sequence[Sequence[Sequence[int]]],
    kept: Callable[[Reduced], Found],
    *,
    at_once: bool = True,
) -> list[list[Found]]:
    """By worker and step, what is kept of an exchange; `flags` are those raised, by step and rank.

    One reduction does all steps, as in a run.
    """

    def work(communicator: ThreadCommunicator) -> list[Found]:
        rank = communicator.rank
        layout = replace(steps[0].layout, num_flags=world_size * len(flags[0][0]))
        reduction = TreeReduction(layout, communicator, CPU)
        found = []
        for leaves, raised in zip(steps, flags, strict=True):
            for number in reduction.begin(len(leaves)):
                reduction.push(filled(reduction.leaf(), leaves, number))
            found.append(kept(reduction.sum(raised[rank])))
        if at_once:
            assert communicator.num_exchanges == (len(steps) if world_size > 1 else 0)
        return found

    return on_threads(ThreadGroup(world_size, at_once=at_once), work)


def sums(steps: list[Leaves], world_size: int, *, at_once: bool = True) -> list[list[bytes]]:
    """By worker and step, the bytes of the sum, nobody having raised a flag."""
    flags = [((),) * world_size for _ in steps]
    return reduced(
        steps,
        world_size,
        flags,
        lambda found: found.total.data.numpy().tobytes(),
        at_once=at_once,
    )


def words(content: bytes, layout: PayloadLayout) -> Payload:
    return Payload(torch.frombuffer(bytearray(content), dtype=torch.uint8), layout)


def along_the_tree(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum in float32 as rule 5 says it, by halves."""
    if len(rows) == 1:
        return np.asarray(rows[0])
    half = 1 << (len(rows) - 1).bit_length() - 1
    total: NDArray[np.float32] = along_the_tree(rows[:half]) + along_the_tree(rows[half:])
    return total


@pytest.mark.parametrize("num_leaves", [1, 2, 3, 5, 8, 12])
def test_every_number_of_workers_gives_the_same_bits_to_every_worker(num_leaves: int) -> None:
    leaves = Leaves(num_leaves)
    (expected,) = sums([leaves], 1)
    for world_size in range(2, num_leaves + 1):
        for at_once in (True, False):
            assert sums([leaves], world_size, at_once=at_once) == [expected] * world_size


@pytest.mark.parametrize("num_leaves", [1, 3, 6, 11, 16])
def test_the_bits_are_those_of_the_tree_in_numpy(num_leaves: int) -> None:
    leaves = Leaves(num_leaves)
    found = words(sums([leaves], 1)[0][0], leaves.layout)
    assert found.float32.numpy().tobytes() == along_the_tree(leaves.float32).tobytes()


def test_adding_one_after_the_other_would_give_other_bits() -> None:
    leaves = Leaves(12)
    in_turn = leaves.float32[0]
    for row in leaves.float32[1:]:
        in_turn = in_turn + row
    found = words(sums([leaves], 1)[0][0], leaves.layout).float32.numpy()
    assert found.tobytes() != in_turn.tobytes()
    np.testing.assert_allclose(found, in_turn, rtol=1e-2)


def test_steps_with_fewer_leaves_than_workers_give_the_same_bits() -> None:
    for num_leaves in (1, 2, 3):
        leaves = Leaves(num_leaves)
        assert sums([leaves], 7) == sums([leaves], 1) * 7


def test_buffers_that_are_used_again_keep_nothing_of_an_earlier_step() -> None:
    steps = [Leaves(size, seed=seed) for seed, size in enumerate((8, 3, 8, 1, 5))]
    alone = [sums([leaves], 1)[0][0] for leaves in steps]
    for world_size in (1, 2, 3, 5):
        assert sums(steps, world_size) == [alone] * world_size


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_counts_are_exact_where_float32_and_float64_are_not(world_size: int) -> None:
    leaves = Leaves(7)
    leaves.int64[:, 0] = [2**24, 1, 0, 1, 0, 0, 1]
    leaves.int64[:, 1] = [2**53, 1, 0, 1, 0, 0, 1]
    found = words(sums([leaves], world_size)[-1][0], leaves.layout).int64.tolist()
    assert found[:2] == [2**24 + 3, 2**53 + 3]
    assert found[2] == sum(leaves.int64[:, 2].tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sums_in_float64_keep_what_float32_would_lose(world_size: int) -> None:
    leaves = Leaves(5)
    leaves.float64[:, 0] = [2.0**24, 1.0, 1.0, 2.0**-20, 1.0]
    found = words(sums([leaves], world_size)[-1][0], leaves.layout).float64.tolist()
    assert found[0] == math.fsum(leaves.float64[:, 0]) == 2.0**24 + 3.0 + 2.0**-20
    for place in range(1, 5):
        assert found[place] == pytest.approx(math.fsum(leaves.float64[:, place]), rel=1e-12)


def test_a_worker_without_leaves_sends_no_garbage() -> None:
    leaves = Leaves(2)
    leaves.float32[:] = 0.0
    assert words(sums([leaves], 5)[0][0], leaves.layout).float32.tolist() == [0.0] * 37


@pytest.mark.parametrize("sizes", [(0, 0, 0), (2, 1, 0), (2, 1, 1), (9, 30, 4097), (0, 0, 16)])
def test_a_payloads_words_lie_apart_and_in_whole_lines(sizes: tuple[int, int, int]) -> None:
    layout = PayloadLayout(*sizes)
    payload = new_payload(layout, CPU)
    assert payload.data.numel() == layout.num_bytes > 0
    assert layout.num_bytes % 64 == layout.float32_start % 64 == 0
    kinds = (payload.float64, payload.int64, payload.float32)
    assert [kind.numel() for kind in kinds] == list(sizes)
    for place, kind in enumerate(kinds):
        kind.fill_(place + 1)
    assert [sorted(set(kind.tolist())) for kind in kinds] == [
        [place + 1.0] if size else [] for place, size in enumerate(sizes)
    ]


Told = tuple[bytes, bytes, bytes, tuple[tuple[int, ...], ...]]


def sum_and_flags(found: Reduced) -> Told:
    total = found.total
    float32, float64 = total.float32.numpy().tobytes(), total.float64.numpy().tobytes()
    return float32, float64, total.int64.numpy().tobytes(), found.flags


FLAG = st.sampled_from([0, 0, 10, 15, 1000]) | st.integers(-(2**63), 2**63 - 1)


@given(data=st.data(), world_size=st.integers(1, 8), kinds=st.integers(1, 3), at_once=st.booleans())
@settings(deadline=None, max_examples=80)
def test_every_worker_is_told_all_flags_by_rank_and_no_bit_of_a_sum_depends_on_them(
    data: st.DataObject, world_size: int, kinds: int, at_once: bool
) -> None:
    # With fewer leaves than workers, some own none, as in an epoch's short last batch.
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3), label="leaves")
    by_rank = st.tuples(*[st.tuples(*[FLAG] * kinds)] * world_size)
    flags = data.draw(st.lists(by_rank, min_size=len(sizes), max_size=len(sizes)), label="flags")
    steps = [Leaves(size, seed=seed) for seed, size in enumerate(sizes)]
    (alone,) = reduced(steps, 1, [((0,) * kinds,)] * len(steps), sum_and_flags)
    expected = [(*found[:3], raised) for found, raised in zip(alone, flags, strict=True)]
    found = reduced(steps, world_size, flags, sum_and_flags, at_once=at_once)
    assert found == [expected] * world_size


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_flag_that_was_raised_at_one_step_is_not_told_at_the_next(
    world_size: int, at_once: bool
) -> None:
    steps = [Leaves(size, seed=seed) for seed, size in enumerate((8, 8, 1, 8, 3, 2))]
    last, none = (*[(0,)] * (world_size - 1), (15,)), ((0,),) * world_size
    flags = [none, last, none, none, last, none]
    told = reduced(steps, world_size, flags, lambda found: found.flags, at_once=at_once)
    assert told == [flags] * world_size


def test_flags_lie_beside_all_other_words() -> None:
    payload = new_payload(PayloadLayout(2, 3, 5, 7, num_flags=4), CPU)
    payload.flags.fill_(-1)
    for words_of in (payload.float64, payload.int64, payload.float32, payload.gradient):
        assert not words_of.any()
