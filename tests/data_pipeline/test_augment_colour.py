import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy import stats

from data_pipeline.augment import Brightness, ChannelShift, Draw, Rescale
from data_pipeline.errors import DataError


def images(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(2).integers(20, 236, shape).astype(dtype)


def draw(count: int) -> Draw:
    return Draw(1, 2, 3, 40, count)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_channel_shift_adds_one_amount_and_stays_in_the_images_own_range_as_keras_does(
    dtype: str,
) -> None:
    rows = images(30, 3, 5, 4, dtype=dtype)
    shifted = ChannelShift(60).changed(rows, draw(30))
    assert shifted.dtype == rows.dtype
    for before, after, amount in zip(rows, shifted, draw(30).uniform(-60, 60), strict=True):
        moved = before.astype(np.float64) + amount
        expected = np.clip(moved, before.min(), before.max())
        rounded = np.floor(expected + 0.5) if dtype == "uint8" else expected
        np.testing.assert_allclose(after, rounded, rtol=1e-6)


def test_channel_shift_by_more_than_all_bytes_gives_the_ends_of_the_range() -> None:
    rows = images(20, 1, 3, 3)
    shifted = ChannelShift(1e9).changed(rows, draw(20))
    up = draw(20).uniform(-1.0, 1.0) > 0
    assert up.any()
    assert not up.all()
    for before, after, upwards in zip(rows, shifted, up, strict=True):
        assert (after == (before.max() if upwards else before.min())).all()


def test_amounts_of_channel_shift_are_uniform() -> None:
    rows = np.array([0.0, 1.0, 0.5], np.float32).reshape(1, 1, 1, 3).repeat(4_000, axis=0)
    shifted = ChannelShift(0.25).changed(rows, draw(4_000))
    amounts = shifted[:, 0, 0, 2] - 0.5
    assert stats.kstest(amounts, stats.uniform(-0.25, 0.5).cdf).pvalue > 1e-3


def test_brightness_is_that_of_pillow_within_its_rounding() -> None:
    rows = images(20, 3, 6, 5)
    changed = Brightness(0.2, 1.8).changed(rows, draw(20))
    assert changed.dtype == np.uint8
    for before, after, factor in zip(rows, changed, draw(20).uniform(0.2, 1.8), strict=True):
        image = Image.fromarray(np.ascontiguousarray(before.transpose(1, 2, 0)))
        by_pillow = np.asarray(ImageEnhance.Brightness(image).enhance(factor), np.int16)
        # Pillow cuts fractions off, this rounds.
        assert np.isin(after - by_pillow.transpose(2, 0, 1), [0, 1]).all()


def test_brightness_rounds_halves_up_and_ends_at_255() -> None:
    rows = np.array([[[[1, 2, 3, 200]]]], np.uint8)
    assert Brightness(1.5, 1.5).changed(rows, draw(1)).ravel().tolist() == [2, 3, 5, 255]


def test_brightness_of_floats_is_their_product_beyond_any_limit() -> None:
    rows = images(9, 1, 3, 3, dtype="float32") - 100
    changed = Brightness(2.0, 3.0).changed(rows, draw(9))
    factors = draw(9).uniform(2.0, 3.0).astype(np.float32)
    assert np.array_equal(changed, rows * factors.reshape(9, 1, 1, 1))
    assert stats.kstest(draw(4_000).uniform(2.0, 3.0), stats.uniform(2, 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), ()])
def test_rescale_multiplies_and_adds_in_float32(dtype: str, shape: tuple[int, ...]) -> None:
    rows = images(4, *shape, dtype=dtype)
    scaled = Rescale(1 / 127.5, -1.0).changed(rows, draw(4))
    assert scaled.dtype == np.float32
    expected = rows.astype(np.float32) * np.float32(1 / 127.5) + np.float32(-1)
    assert np.array_equal(scaled, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChannelShift(-1), r"ChannelShift\(reach=-1\): reach must be 0 or more"),
        (lambda: Brightness(-1, 1), r"Brightness\(low=-1\): low must be 0 or more"),
        (lambda: Brightness(1, 0.5), r"Brightness\(high=0.5\): high must be finite and not below"),
        (lambda: Rescale(math.inf), r"Rescale\(scale=inf\): scale must be finite"),
        (lambda: Rescale(1, math.nan), r"Rescale\(offset=nan\): offset must be finite"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("transform", [ChannelShift(1), Brightness(1, 2)])
def test_what_is_no_image_of_bytes_or_floats_is_refused(transform: Any) -> None:
    name = type(transform).__name__
    with pytest.raises(DataError, match=rf"{name} works on images \(C, H, W\)"):
        transform.changed(images(3, 4), draw(3))
    with pytest.raises(DataError, match=rf"{name} works on images of uint8 or float32, not of int"):
        transform.changed(images(3, 1, 4, 4, dtype="int16"), draw(3))
