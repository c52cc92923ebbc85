"""Compiled loops write where they are told to: nothing reaches them that would lead them astray."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import DataError, Dataset
from data_pipeline.gather import Blocks
from data_pipeline.manifest import DTYPES
from data_pipeline.standardize import Standardization


def blocks(dtype: str, shape: tuple[int, ...], cuts: list[int]) -> tuple[NDArray[Any], Blocks]:
    values = np.random.default_rng(0).integers(0, 100, (20, *shape)).astype(dtype)
    edges = [0, *sorted(cuts), 20]
    arrays = [values[start:stop].copy() for start, stop in pairwise(edges)]
    return values, Blocks(arrays)


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.sampled_from([(), (1,), (3,), (2, 3, 5), (8,)]),
    cuts=st.lists(st.integers(0, 20), max_size=4),
    rows=st.lists(st.integers(0, 19), max_size=30),
)
@settings(deadline=None, max_examples=60)
def test_rows_of_any_kind_are_numpys_wherever_the_shards_are_cut(
    dtype: str, shape: tuple[int, ...], cuts: list[int], rows: list[int]
) -> None:
    values, gathered = blocks(dtype, shape, cuts)
    out = np.empty((len(rows), *shape), dtype)
    gathered.copy(np.array(rows, np.int64), out)
    assert np.array_equal(out, values[rows])


@pytest.mark.parametrize(
    "out",
    [
        np.empty((1, 3), np.float32),
        np.empty((2, 4), np.float32),
        np.empty((2, 3), np.float64),
        np.empty((2, 6), np.float32)[:, ::2],
    ],
    ids=["too few rows", "wider", "another dtype", "not contiguous"],
)
def test_an_array_that_would_be_overrun_is_refused(out: NDArray[Any]) -> None:
    _, gathered = blocks("float32", (3,), [7])
    with pytest.raises(ValueError, match=r"go to a contiguous array of shape \(2, 3\)"):
        gathered.copy(np.array([4, 5]), out)


def test_numbers_of_16_bits_are_scaled_as_those_of_32() -> None:
    values, gathered = blocks("float16", (3,), [7])
    scale, offset = np.array([2, 3, 4], np.float32), np.array([1, -1, 0.5], np.float32)
    out, rows = np.empty((5, 3), np.float32), np.array([0, 19, 7, 7, 3])
    Standardization(scale, offset, axis=1).gather(gathered, rows, out)
    assert np.array_equal(out, values[rows].astype(np.float32) * scale + offset)


def test_features_that_a_transform_has_made_more_or_fewer_are_not_scaled_by_others() -> None:
    scaling = Standardization(np.ones(4, np.float32), np.zeros(4, np.float32), axis=1)
    for made in (3, 6):
        rows = np.zeros((2, made), np.float32)
        with pytest.raises(DataError, match=f"has made {made} of them: wrap it in AfterScaling"):
            scaling.apply(rows, np.empty_like(rows))


def test_numbers_in_another_byte_order_are_turned_round() -> None:
    data = Dataset.from_arrays(
        {"x": np.arange(5, dtype=">i4"), "b": np.array([True, False] * 3)[:5]}
    )
    out, flags = np.empty(3, np.int32), np.empty(3, np.uint8)
    data.gather("x", np.array([4, 0, 2]), out)
    data.gather("b", np.array([4, 1, 2]), flags)
    assert (out.tolist(), flags.tolist()) == ([4, 0, 2], [1, 0, 1])


def test_rows_without_values_are_refused() -> None:
    with pytest.raises(DataError, match="sizes must be 1 or more"):
        Dataset.from_arrays({"x": np.zeros((4, 0))})
