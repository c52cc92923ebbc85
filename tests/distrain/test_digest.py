"""Digests of tensors: any flipped bit shows, and nothing else matters."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.parallel.digest import combined, tensor_digest, tensor_digests

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
)


def filled(num_elements: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of random bytes."""
    generator = torch.Generator().manual_seed(seed)
    size = num_elements * dtype.itemsize
    octets = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    return octets.view(dtype) if size else torch.zeros(0, dtype=dtype)


def flipped(tensor: torch.Tensor, bit: int) -> torch.Tensor:
    """A copy with one of its bits turned over."""
    copy = tensor.clone()
    octets = copy.reshape(-1).view(torch.uint8)
    octets[bit // 8] ^= 1 << bit % 8
    return copy


def by_hand(tensor: torch.Tensor) -> int:
    """The sum as the module's docstring has it, in whole numbers without end."""
    octets = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    words = np.frombuffer(octets + bytes(-len(octets) % 4), dtype="<i4").tolist()
    columns = [odd(place) for place in range(4096)]
    num_rows = len(words) // 4096
    total = sum(
        word * columns[i % 4096] * (odd(4096 + i // 4096) if i < num_rows * 4096 else 1)
        for i, word in enumerate(words)
    )
    return signed(total)


def odd(place: int) -> int:
    mixed = signed((place + 1) * 0x1E3779B97F4A7C15)
    mixed = signed((mixed ^ (mixed >> 30)) * 0x3F58476D1CE4E5B9)
    return (mixed ^ (mixed >> 27)) | 1


def signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


@given(
    num_elements=st.one_of(st.integers(1, 70), st.sampled_from((4095, 4096, 4097, 9000))),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(deadline=None, max_examples=300)
def test_any_single_flipped_bit_changes_the_digest(
    num_elements: int, dtype: torch.dtype, seed: int, data: st.DataObject
) -> None:
    tensor = filled(num_elements, dtype, seed)
    bit = data.draw(st.integers(0, 8 * num_elements * dtype.itemsize - 1))
    assert tensor_digest(flipped(tensor, bit)) != tensor_digest(tensor)


def test_every_bit_of_some_numbers_counts() -> None:
    tensor = filled(20, torch.float32, 0)
    digests = {int(tensor_digest(flipped(tensor, bit))) for bit in range(20 * 32)}
    assert len(digests | {int(tensor_digest(tensor))}) == 20 * 32 + 1


@pytest.mark.parametrize("place", [0, 4095, 4096, 300_000, 1_000_000, 1_048_576, 1_050_000])
def test_a_bit_of_a_large_tensor_counts_wherever_it_is(place: int) -> None:
    tensor = filled(1_050_001, torch.float32, 1)
    before = tensor_digest(tensor)
    for bit in (0, 23, 31):
        assert tensor_digest(flipped(tensor, 32 * place + bit)) != before


def test_sign_bits_that_flip_in_pairs_do_not_cancel_out() -> None:
    tensor = filled(64, torch.float32, 2)
    digests = {
        int(tensor_digest(flipped(flipped(tensor, 32 * first + 31), 32 * second + 31)))
        for first in range(64)
        for second in range(first)
    }
    assert int(tensor_digest(tensor)) not in digests
    assert len(digests) == 64 * 63 // 2


@pytest.mark.parametrize("num_elements", [0, 1, 5, 4096, 4099, 9000, 4096 * 65 + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_the_digest_is_the_sum_that_the_page_has(num_elements: int, dtype: torch.dtype) -> None:
    tensor = filled(num_elements, dtype, 3)
    assert int(tensor_digest(tensor)) == by_hand(tensor)


def test_it_is_of_the_elements_and_not_of_how_they_lie() -> None:
    tensor = filled(24, torch.float32, 4)
    digest = tensor_digest(tensor)
    assert tensor_digest(tensor.view(4, 6).T.contiguous().T) == digest
    assert tensor_digest(torch.cat([torch.zeros(1), tensor])[1:]) == digest
    odd_place = torch.zeros(97, dtype=torch.uint8)
    octets = filled(96, torch.uint8, 5)
    odd_place[1:] = octets
    assert tensor_digest(odd_place[1:]) == tensor_digest(octets)
    assert tensor_digest(torch.tensor(3.5)) == tensor_digest(torch.tensor([3.5]))
    assert tensor_digest(torch.nn.Parameter(tensor)) == digest


def test_swapped_elements_and_zeros_of_other_signs_show() -> None:
    tensor = torch.arange(10.0)
    assert tensor_digest(tensor.flip(0)) != tensor_digest(tensor)
    assert tensor_digest(torch.zeros(3)) != tensor_digest(-torch.zeros(3))


def test_digests_of_several_come_by_name_in_their_order() -> None:
    tensors: dict[str, Any] = {"b": torch.ones(3), "a": torch.zeros(2), "c": torch.tensor(True)}
    found = tensor_digests(tensors)
    assert list(found) == ["b", "a", "c"]
    assert found == {name: int(tensor_digest(tensor)) for name, tensor in tensors.items()}
    assert tensor_digests({}) == {}


INT64 = st.integers(-(2**63), 2**63 - 1)


@given(st.dictionaries(st.text(max_size=3), INT64, min_size=1), INT64, st.data())
def test_one_number_for_all_changes_with_any_single_one(
    digests: dict[str, int], other: int, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(digests)))
    number = combined(digests)
    assert -(2**63) <= number < 2**63
    assert (combined({**digests, name: other}) == number) == (digests[name] == other)
    rest = {key: value for key, value in digests.items() if key != name}
    assert combined(rest) != number or digests[name] == -1
