from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipeline.random import derive_key, integers, uniform, words_at

KEYS = st.integers(0, 2**128 - 1)
LARGEST_WORD = np.uint64(2**64 - 1)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        (0, 0, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (
            2**128 - 1,
            2**256 - 1,
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
    ],
)
def test_words_are_those_that_the_authors_of_philox_published(
    key: int, counter: int, expected: str
) -> None:
    # kat_vectors of Random123 (Salmon et al.), philox4x64 with 10 rounds. NumPy counts one up
    # before it draws.
    words = words_at(key, (counter - 1) % 2**256, 1, 4)
    assert " ".join(f"{word:016x}" for word in words[0].tolist()) == expected


@given(key=KEYS, first=st.integers(0, 300), count=st.integers(0, 50), num_words=st.integers(1, 11))
@settings(deadline=None, max_examples=80)
def test_words_of_a_range_are_numpys_stream_from_zero_cut_out(
    key: int, first: int, count: int, num_words: int
) -> None:
    words_a_position = (num_words + 3) // 4 * 4
    stream = np.random.Philox(key=key).random_raw((first + count) * words_a_position)
    expected = stream.reshape(first + count, words_a_position)[first:, :num_words]
    words = words_at(key, first, count, num_words)
    assert words.dtype == np.uint64
    assert np.array_equal(words, expected)


@given(
    key=KEYS,
    first=st.integers(0, 2**60),
    cuts=st.lists(st.integers(0, 200), max_size=6),
    num_words=st.integers(1, 6),
)
@settings(deadline=None, max_examples=60)
def test_words_do_not_depend_on_how_a_range_is_split(
    key: int, first: int, cuts: list[int], num_words: int
) -> None:
    edges = [0, *sorted(cuts), 200]
    whole = words_at(key, first, 200, num_words)
    parts = [words_at(key, first + a, b - a, num_words) for a, b in pairwise(edges)]
    assert np.array_equal(np.concatenate(parts), whole)


def test_no_word_is_shared_by_two_positions_or_two_keys() -> None:
    drawn = [words_at(derive_key("test", key), 0, 500, num_words=5) for key in range(20)]
    assert len(np.unique(np.stack(drawn))) == 20 * 500 * 5


def test_words_of_no_positions_or_no_words_are_none() -> None:
    assert words_at(1, 5, 0, 3).shape == (0, 3)
    assert words_at(1, 5, 3, 0).shape == (3, 0)


def test_uniform_reaches_zero_and_stays_below_one() -> None:
    ends = uniform(np.array([0, LARGEST_WORD], dtype=np.uint64))
    assert ends.tolist() == [0.0, 1.0 - 2.0**-53]


@pytest.mark.parametrize("column", range(3))
def test_uniform_is_uniform_over_positions(column: int) -> None:
    values = uniform(words_at(derive_key("test", 1), 0, 50_000, 3)[:, column])
    counts = np.histogram(values, bins=100, range=(0.0, 1.0))[0]
    assert counts.sum() == 50_000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_uniform_is_uniform_over_keys_at_one_position() -> None:
    drawn = np.concatenate([words_at(derive_key("test", 2, e), 7, 1, 1) for e in range(5_000)])
    counts = np.histogram(uniform(drawn), bins=50, range=(0.0, 1.0))[0]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbouring_positions_and_words_are_uncorrelated() -> None:
    values = uniform(words_at(derive_key("test", 3), 0, 20_000, 2))
    assert stats.pearsonr(values[:-1, 0], values[1:, 0]).pvalue > 1e-3
    assert stats.pearsonr(values[:, 0], values[:, 1]).pvalue > 1e-3


@given(low=st.integers(-(2**40), 2**40), width=st.integers(0, 2**50))
@settings(deadline=None)
def test_integers_include_both_bounds_and_nothing_beyond(low: int, width: int) -> None:
    ends = integers(np.array([0, LARGEST_WORD], dtype=np.uint64), low, low + width)
    assert ends.dtype == np.int64
    assert ends.tolist() == [low, low + width]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-2, 4), (1, 1_000)])
def test_integers_are_uniform_over_the_bounds(low: int, high: int) -> None:
    drawn = integers(words_at(derive_key("test", 4), 0, 30_000, 1)[:, 0], low, high)
    counts = np.bincount(drawn - low, minlength=high - low + 1)
    assert len(counts) == high - low + 1
    assert stats.chisquare(counts).pvalue > 1e-3


def test_a_key_is_of_the_parts_taken_together_in_their_order_and_type() -> None:
    several: list[tuple[int | str, ...]] = [
        ("a", 1, 2),
        ("a", 2, 1),
        ("a", 12),
        ("a", "1", 2),
        ("a1", 2),
        ("a", 1, 2, 0),
        ("a", 0, 3),
        ("b", 1, 2),
        (),
    ]
    assert len({derive_key(*parts) for parts in several}) == len(several)


def test_a_key_has_128_bits() -> None:
    keys = [derive_key("width", number) for number in range(200)]
    assert max(keys) < 2**128
    assert min(key.bit_length() for key in keys) > 110
    assert max(key.bit_length() for key in keys) == 128


def test_a_key_never_changes_between_releases() -> None:
    # printf 'str:order\x1fint:0\x1fint:1' | b2sum -l 128
    b2sum = bytes.fromhex("8be3693361d7f155d259ae4c2030bdfc")
    assert derive_key("order", 0, 1) == int.from_bytes(b2sum, "little")


def test_a_numpy_integer_gives_the_key_of_pythons() -> None:
    assert derive_key("a", int(np.int64(3))) == derive_key("a", np.int64(3))  # type: ignore[arg-type]


def test_a_part_that_is_neither_whole_number_nor_text_is_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        derive_key("a", 0.5)  # type: ignore[arg-type]
