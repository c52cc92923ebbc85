from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, stats

from data_pipeline.augment import Draw, Samples, Scaling, TimeShift
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column

COLUMNS = {"x": Column(name="x", kind="sequence", dtype="float32", shape=(2,))}


def draw(count: int) -> Draw:
    return Draw(1, 2, 3, 40, count)


def shifted(
    transform: TimeShift, rows: NDArray[Any], lengths: NDArray[np.int64] | None = None
) -> NDArray[Any]:
    arrays = {"x": rows} if lengths is None else {"x": rows, "x_lengths": lengths}
    samples = Samples(dict(arrays), COLUMNS, "x")
    transform(samples, draw(len(rows)))
    if lengths is not None:
        assert np.array_equal(samples.arrays["x_lengths"], lengths)
    return samples.arrays["x"]


def series(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    return np.arange(1, np.prod(shape) + 1).reshape(shape).astype(dtype)


@pytest.mark.parametrize(("fill", "mode"), [("edge", "nearest"), ("zeros", "constant")])
@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_series_are_moved_as_scipy_moves_them(fill: str, mode: str, dtype: str) -> None:
    rows = series(9, 6, 2, dtype=dtype)
    moved = shifted(TimeShift(8, fill), rows)
    assert moved.dtype == rows.dtype
    for before, after, steps in zip(rows, moved, draw(9).integers(-8, 8), strict=True):
        assert np.array_equal(after, ndimage.shift(before, (steps, 0), order=0, mode=mode))


@pytest.mark.parametrize(("fill", "mode"), [("edge", "nearest"), ("zeros", "constant")])
def test_a_padded_sequence_is_moved_within_its_length(fill: str, mode: str) -> None:
    rows = series(40, 7, 2)
    lengths = np.arange(40) % 8
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = 0
    moved = shifted(TimeShift(3, fill), rows, lengths)
    steps = draw(40).integers(-3, 3)
    for before, after, length, step in zip(rows, moved, lengths, steps, strict=True):
        assert not after[length:].any()
        if length:
            inside = ndimage.shift(before[:length], (step, 0), order=0, mode=mode)
            assert np.array_equal(after[:length], inside)


def test_a_series_of_single_values_is_moved_too() -> None:
    rows = series(5, 4)
    moved = shifted(TimeShift(1), rows)
    assert np.array_equal(moved, shifted(TimeShift(1), rows[:, :, None])[:, :, 0])


def test_every_shift_within_reach_is_equally_frequent() -> None:
    rows = series(1, 9).repeat(3_000, axis=0)
    moved = shifted(TimeShift(2), rows)
    counts = np.unique(moved[:, 4], return_counts=True)[1]
    assert len(counts) == 5
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(6, 2), (6,)])
def test_scaling_multiplies_each_series_by_one_uniform_factor(shape: tuple[int, ...]) -> None:
    rows = series(2_000, *shape) / 1_000
    scaled = Scaling(0.8, 1.3).changed(rows, draw(2_000))
    factors = draw(2_000).uniform(0.8, 1.3)
    flat, before = scaled.reshape(2_000, -1), rows.reshape(2_000, -1)
    np.testing.assert_allclose(flat, before * factors[:, None], rtol=1e-6)
    assert stats.kstest(factors, stats.uniform(0.8, 0.5).cdf).pvalue > 1e-3
    assert Scaling(1, 1).after_scaling


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeShift(-1), r"TimeShift\(steps=-1\): steps must be 0 or more"),
        (lambda: TimeShift(1, "wrap"), r"TimeShift\(fill='wrap'\): fill must be one of edge, zero"),
        (lambda: Scaling(-1, 1), r"Scaling\(low=-1\): low must be 0 or more"),
        (lambda: Scaling(2, 1), r"Scaling\(high=1\): high must be finite and not below low"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_series_is_refused() -> None:
    with pytest.raises(DataError, match=r"TimeShift works on series \(T,\) or \(T, F\), but a row"):
        shifted(TimeShift(1), series(2, 3, 4, 4))
    with pytest.raises(DataError, match=r"Scaling works on series \(T,\) or \(T, F\), but a row"):
        Scaling(1, 2).changed(series(2), draw(2))
    with pytest.raises(DataError, match=r"Scaling works on float32, but the inputs are int64"):
        Scaling(1, 2).changed(series(2, 3, dtype="int64"), draw(2))
