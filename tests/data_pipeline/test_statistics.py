import io
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import statistics
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column, ColumnStatistics
from data_pipeline.ragged import Ragged
from data_pipeline.statistics import Moments, column_statistics, moments, statistics_axes

LABEL = Column(name="label", kind="label", dtype="int64", classes=("a", "b", "c"))


def column(shape: tuple[int, ...], dtype: str = "float32") -> Column:
    return Column(name="x", kind="tensor" if shape else "number", dtype=dtype, shape=shape)


def slices(rows: NDArray[Any]) -> list[NDArray[Any]]:
    """The values that share a mean: by channel for (N, C, H, W), else by the last axis."""
    if rows.ndim == 1:
        return [rows]
    if rows.ndim == 4:
        return [rows[:, channel] for channel in range(rows.shape[1])]
    return [rows[..., feature] for feature in range(rows.shape[-1])]


@pytest.mark.parametrize("shape", [(), (1,), (5,), (4, 3), (3, 6, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64"])
def test_mean_and_std_are_those_of_each_channel_or_feature(
    shape: tuple[int, ...], dtype: str
) -> None:
    rows = np.random.default_rng(0).normal(100, 20, (50, *shape)).astype(dtype)
    found = column_statistics(column(shape, dtype), rows)
    expected = [
        (part.astype(np.float64).mean(), part.astype(np.float64).std()) for part in slices(rows)
    ]
    assert found.count == 50
    assert found.label_counts == ()
    assert found.mean == pytest.approx([mean for mean, _ in expected], rel=1e-13)
    assert found.std == pytest.approx([std for _, std in expected], rel=1e-12)


def test_sums_are_taken_in_float64() -> None:
    rows = np.full(20_000, 2.0**24, dtype=np.float32)
    rows[::2] += 2
    # In float32, 2^24 + 1 is 2^24.
    assert column_statistics(column(()), rows).mean == (2.0**24 + 1,)
    assert column_statistics(column(()), rows).std == (1.0,)


@pytest.mark.parametrize("value", [0.1, 1.0 / 3.0, 1e-300, 1e15, -7.3, 0.0])
@pytest.mark.parametrize("count", [1, 3, 1_000])
def test_a_constant_feature_has_its_value_as_mean_and_no_deviation(
    value: float, count: int
) -> None:
    varying = np.arange(count, dtype=np.float64)
    rows = np.stack([np.full(count, value), varying], axis=1)
    found = column_statistics(column((2,), "float64"), rows)
    assert (found.mean[0], found.std[0]) == (value, 0.0)
    assert found.std[1] == pytest.approx(varying.std())


@given(labels=st.lists(st.integers(0, 2), max_size=50))
@settings(deadline=None)
def test_labels_are_counted_by_class(labels: list[int]) -> None:
    counts = Counter(labels)
    assert column_statistics(LABEL, np.array(labels, dtype=np.int64)) == ColumnStatistics(
        count=len(labels), label_counts=(counts[0], counts[1], counts[2])
    )


@pytest.mark.parametrize(("labels", "ends"), [([0, 3], "0 to 3"), ([-1, 2, 0], "-1 to 2")])
def test_a_label_outside_of_its_classes_is_refused(labels: list[int], ends: str) -> None:
    with pytest.raises(DataError) as caught:
        column_statistics(LABEL, np.array(labels))
    assert str(caught.value) == (
        f"column 'label' has labels from {ends}, but 3 classes: labels must lie in [0, 3)"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_rows(value: float) -> None:
    rows = np.zeros((9, 2, 3), dtype=np.float32)
    rows[4, 1, 2] = rows[7, 0, 0] = value
    with pytest.raises(DataError) as caught:
        column_statistics(column((2, 3)), rows)
    assert str(caught.value) == "column 'x' has NaN or infinity in rows [4, 7]"


def test_no_rows_have_no_statistics() -> None:
    assert column_statistics(column((2,)), np.zeros((0, 2))) == ColumnStatistics(count=0)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), (0,)),
        ((4,), (0,)),
        ((7, 4), (0, 1)),
        ((3, 8, 8), (0, 2, 3)),
        ((2, 3, 4, 5), (0, 1, 2, 3)),
    ],
)
def test_axes_to_average_over_are_all_but_the_channel_or_the_last(
    shape: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    assert statistics_axes(shape) == axes


SHAPES = st.sampled_from([(), (1,), (4,), (2, 3), (3, 2, 2)])


@given(
    shape=SHAPES,
    cuts=st.lists(st.integers(0, 30), max_size=5),
    offset=st.sampled_from([0.0, 1e6, -1e9]),
    share_missing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 9),
)
@settings(deadline=None, max_examples=150)
def test_blocks_put_together_are_one_block(
    shape: tuple[int, ...], cuts: list[int], offset: float, share_missing: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.normal(offset, 1.0, (30, *shape))
    rows[generator.random(rows.shape) < share_missing] = np.nan
    described = column(shape, "float64")
    found = Moments.nothing(described)
    edges = [0, *sorted(cuts), 30]
    for start, stop in pairwise(edges):
        found = found.merge(moments(described, rows[start:stop], missing_allowed=True))
    merged = found.statistics(described)
    whole = column_statistics(described, rows, missing_allowed=True)
    assert (merged.count, merged.missing) == (whole.count, whole.missing)
    assert (merged.least, merged.greatest) == (whole.least, whole.greatest)
    assert merged.mean == pytest.approx(whole.mean, rel=1e-14, abs=1e-14)
    # Where E[x^2] - mean^2 would have lost all digits.
    assert merged.std == pytest.approx(whole.std, rel=1e-6 if offset else 1e-12)


def test_missing_values_take_part_in_nothing_but_their_count() -> None:
    rows = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, 5.0]])
    found = column_statistics(column((2,), "float64"), rows, missing_allowed=True)
    assert found == ColumnStatistics(
        count=3, mean=(2.0, 5.0), std=(1.0, 0.0), least=(1.0, 5.0), greatest=(3.0, 5.0), missing=2
    )
    with pytest.raises(DataError, match=r"column 'x' has infinity in rows \[1\]"):
        column_statistics(column(()), np.array([np.nan, np.inf]), missing_allowed=True)


def test_large_blocks_are_cut_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(50, 3, (500, 3, 2, 2)).astype(np.float32)
    whole = column_statistics(column((3, 2, 2)), rows)
    monkeypatch.setattr(statistics, "_VALUES_AT_ONCE", 100)
    cut = column_statistics(column((3, 2, 2)), rows)
    assert cut.mean == pytest.approx(whole.mean, rel=1e-14)
    assert cut.std == pytest.approx(whole.std, rel=1e-13)


def test_sequences_are_summed_up_by_the_features_of_their_steps() -> None:
    described = Column(name="x", kind="sequence", dtype="float32", shape=(2,))
    steps = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows = Ragged(np.array([0, 4, 4, 6]), steps)
    found = column_statistics(described, rows)
    assert found.count == 3
    assert found.mean == (5.0, 6.0)
    assert found.std == pytest.approx(steps.std(axis=0).tolist())
    steps[4, 0] = np.nan
    with pytest.raises(DataError, match=r"column 'x' has NaN or infinity in rows \[2\]"):
        column_statistics(described, rows)
    empty = Ragged(np.zeros(3, np.int64), steps[:0])
    assert column_statistics(described, empty) == ColumnStatistics(count=2)


def test_encoded_pictures_are_summed_up_by_channel_over_all_pixels() -> None:
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (5 + n, 4, 3), np.uint8) for n in range(3)]
    described = Column(name="x", kind="image", dtype="uint8", shape=(3,))
    found = column_statistics(described, Ragged.of_bytes([png(pixels) for pixels in pictures]))
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures]).astype(np.float64)
    assert found.count == 3
    assert found.mean == pytest.approx(pixels.mean(axis=0).tolist(), rel=1e-14)
    assert found.std == pytest.approx(pixels.std(axis=0).tolist(), rel=1e-13)
    assert found.least == tuple(pixels.min(axis=0).tolist())
    assert found.greatest == tuple(pixels.max(axis=0).tolist())


def png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_texts_are_counted() -> None:
    described = Column(name="x", kind="text", dtype="uint8", max_length=3)
    assert column_statistics(described, Ragged.of_bytes([b"", b"abc"])) == ColumnStatistics(count=2)
