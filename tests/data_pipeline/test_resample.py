from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import compiled
from data_pipeline.errors import DataError
from data_pipeline.resample import Box, resample, resample_planes

SCALE = np.array([0.017, 0.0175, 0.0174], dtype=np.float32)
OFFSET = np.array([-2.1, -2.03, -1.8], dtype=np.float32)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def bilinear(image: NDArray[Any], box: Box, size: tuple[int, int]) -> NDArray[np.float64]:
    """In real numbers: `(H, W, C)` to `(C, h, w)`, by weights over all pixels of each axis."""

    def weights(start: float, length: float, pixels: int, count: int) -> NDArray[np.float64]:
        places = start + (np.arange(count) + 0.5) * length / count - 0.5
        places = np.clip(places, start, max(start, start + length - 1)).clip(0, pixels - 1)
        found: NDArray[np.float64] = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(pixels)))
        return found

    rows = weights(box.top, box.height, image.shape[0], size[0])
    columns = weights(box.left, box.width, image.shape[1], size[1])
    found: NDArray[np.float64] = np.einsum(
        "yh,hwc,xw->cyx", rows, image.astype(np.float64), columns
    )
    return found


def as_bytes(
    image: NDArray[Any], box: Box, size: tuple[int, int], **options: Any
) -> NDArray[np.uint8]:
    out = np.full((image.shape[2], *size), 77, dtype=np.uint8)
    resample(image, box, out, **options)
    return out


def of_planes(planes: NDArray[Any], box: Box, size: tuple[int, int]) -> NDArray[Any]:
    out = np.full((1, len(planes), *size), 77, dtype=planes.dtype)
    resample_planes(planes[None], np.array([box]), out)
    found: NDArray[Any] = out[0]
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.uint8], Box, tuple[int, int]]:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    channels = draw(st.sampled_from([1, 3]))
    image = noise(height, width, channels, seed=draw(st.integers(0, 99)))
    if draw(st.booleans()):
        image = np.where(image > 127, 255, 0).astype(np.uint8)  # the steepest edges
    fractions = st.floats(0, 1, allow_subnormal=False)
    top, left = draw(fractions) * height * 0.9, draw(fractions) * width * 0.9
    box_height = max(0.05, draw(fractions)) * (height - top)
    box_width = max(0.05, draw(fractions)) * (width - left)
    if draw(st.booleans()):
        top, left = float(int(top)), float(int(left))
        box_height = float(max(1, int(box_height)))
        box_width = float(max(1, int(box_width)))
    size = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    return image, Box(top, left, box_height, box_width), size


@settings(deadline=None, max_examples=300)
@given(cases())
def test_every_sample_is_within_one_level_of_the_rounded_real_number(
    case: tuple[NDArray[np.uint8], Box, tuple[int, int]],
) -> None:
    image, box, size = case
    expected = bilinear(image, box, size)
    found = as_bytes(image, box, size)
    assert np.abs(found - np.floor(expected + 0.5)).max() <= 1
    assert np.abs(found - expected).max() <= 0.8


@settings(deadline=None, max_examples=100)
@given(cases(), st.booleans())
def test_channels_first_and_last_and_fused_and_unfused_agree_bit_for_bit(
    case: tuple[NDArray[np.uint8], Box, tuple[int, int]], mirrored: bool
) -> None:
    image, box, size = case
    channels = image.shape[2]
    levels = as_bytes(image, box, size, mirrored=mirrored)
    same = of_planes(image.transpose(2, 0, 1), box, size)
    assert np.array_equal(levels, same[..., ::-1] if mirrored else same)
    scale, offset = SCALE[:channels], OFFSET[:channels]
    expected = levels.astype(np.float32) * scale[:, None, None] + offset[:, None, None]
    for some in (slice(0, channels), slice(0, 1)):
        out = np.full((len(scale[some]), *size), np.nan, dtype=np.float32)
        resample(
            image[..., some], box, out, mirrored=mirrored, scale=scale[some], offset=offset[some]
        )
        assert out.tobytes() == expected[some].tobytes()


@settings(deadline=None, max_examples=100)
@given(cases())
def test_a_mirrored_result_is_the_result_from_right_to_left(
    case: tuple[NDArray[np.uint8], Box, tuple[int, int]],
) -> None:
    image, box, size = case
    assert np.array_equal(as_bytes(image, box, size, mirrored=True), as_bytes(*case)[..., ::-1])


@settings(deadline=None, max_examples=100)
@given(cases())
def test_float_images_are_resampled_without_rounding(
    case: tuple[NDArray[np.uint8], Box, tuple[int, int]],
) -> None:
    image, box, size = case
    values = image.astype(np.float32) / np.float32(3) - np.float32(20)
    out = of_planes(values.transpose(2, 0, 1), box, size)
    assert np.abs(out - bilinear(values, box, size)).max() < 1e-3


def test_the_result_is_that_of_torch_on_the_cropped_image() -> None:
    image = noise(48, 64, 3)
    box = Box(5, 7, 31, 44)
    crop = torch.from_numpy(image[5:36, 7:51].transpose(2, 0, 1).astype(np.float32))
    for size in ((20, 30), (62, 88), (31, 44)):
        expected = torch.nn.functional.interpolate(
            crop[None], size, mode="bilinear", align_corners=False
        )[0].numpy()
        assert np.abs(as_bytes(image, box, size) - expected).max() <= 0.8
        out = of_planes(image.transpose(2, 0, 1).astype(np.float32), box, size)
        assert np.abs(out - expected).max() < 2e-3


def test_an_image_of_its_own_size_comes_out_unchanged_and_one_colour_stays_that_colour() -> None:
    image = noise(33, 47, 3)
    assert np.array_equal(as_bytes(image, Box(0, 0, 33, 47), (33, 47)), image.transpose(2, 0, 1))
    for level in range(256):
        flat = np.full((9, 11, 3), level, dtype=np.uint8)
        assert (as_bytes(flat, Box(0.3, 1.1, 8.1, 9.2), (7, 13)) == level).all()


def test_half_a_level_is_rounded_up() -> None:
    image = np.array([[10, 11]], dtype=np.uint8).reshape(1, 2, 1)
    assert as_bytes(image, Box(0, 0, 1, 2), (1, 1)).item() == 11


def test_the_bits_are_those_of_a_hand_made_integer_computation() -> None:
    image = noise(29, 31, 3)
    box, size = Box(2.0, 3.0, 21.0, 26.0), (17, 19)
    expected = np.empty((3, *size), dtype=np.uint8)
    for y in range(17):
        at_y = min(max(2 + (y + 0.5) * (21 / 17) - 0.5, 2), 22)
        v = int(np.floor((at_y - int(at_y)) * 2_048 + 0.5))
        for x in range(19):
            at_x = min(max(3 + (x + 0.5) * (26 / 19) - 0.5, 3), 28)
            w = int(np.floor((at_x - int(at_x)) * 1_024 + 0.5))
            for channel in range(3):
                part = image[int(at_y) : int(at_y) + 2, int(at_x) : int(at_x) + 2, channel]
                rows = part.astype(int)
                left, right = ((rows[0] * (2_048 - v) + rows[1] * v + 128) >> 8).tolist()
                expected[channel, y, x] = (left * (1_024 - w) + right * w + 4_096) >> 13
    assert np.array_equal(as_bytes(image, box, size), expected)


def test_planes_of_any_number_are_resampled_each_as_if_alone() -> None:
    planes = noise(7, 20, 25)
    box, size = Box(1.5, 2.5, 15.0, 20.0), (11, 12)
    for count in (1, 2, 6, 7):
        together = of_planes(planes[:count], box, size)
        for number in range(count):
            alone = as_bytes(planes[number, :, :, None], box, size)
            assert np.array_equal(together[number], alone[0])


def test_images_that_do_not_lie_in_one_piece_are_resampled_all_the_same() -> None:
    image = noise(40, 60, 3)
    part = image[::2, 1::2]
    box, size = Box(1, 1, 15, 25), (8, 8)
    assert np.array_equal(as_bytes(part, box, size), as_bytes(part.copy(), box, size))


@pytest.mark.parametrize(
    "box",
    [
        Box(-0.5, 0, 4, 4),
        Box(0, -1, 4, 4),
        Box(0, 0, 0, 4),
        Box(0, 0, 4, -1),
        Box(5, 0, 4, 4),
        Box(0, 7, 4, 4),
        Box(float("nan"), 0, 4, 4),
        Box(0, 0, float("inf"), 4),
    ],
)
def test_a_box_that_is_not_within_the_image_is_refused(box: Box) -> None:
    with pytest.raises(DataError, match="8 x 10 pixels"):
        as_bytes(noise(8, 10, 3), box, (4, 4))


def test_functions_are_compiled_without_a_cache_where_none_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    def njit(*, cache: bool, nogil: bool) -> Any:
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return lambda function: (function, nogil)

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(len) == (len, True)  # type: ignore[comparison-overlap]
    assert asked == [True, False]


def test_arrays_that_do_not_go_together_are_refused() -> None:
    box = Box(0, 0, 8, 8)
    image = noise(8, 8, 3)
    floats = np.empty((3, 4, 4), dtype=np.float32)
    with pytest.raises(DataError, match="number of channels"):
        resample(image, box, np.empty((1, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match="only uint8 is resampled, to uint8 or float32"):
        resample(image.astype(np.int64), box, floats)
    with pytest.raises(DataError, match="3 dimensions"):
        resample(image[0], box, floats)
    with pytest.raises(DataError, match="some pixels"):
        resample(image, box, np.empty((3, 0, 4), dtype=np.float32))
    with pytest.raises(DataError, match="only uint8 is resampled, to uint8 or float32"):
        resample(image.astype(np.float32), box, floats)
    with pytest.raises(DataError, match="need an output of float32"):
        resample(image, box, np.empty((3, 4, 4), dtype=np.uint8), offset=OFFSET)
    with pytest.raises(DataError, match=r"shape \(3,\)"):
        resample(image, box, floats, scale=SCALE[:1])
