from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from data_pipeline.augment import CenterCrop, Cropping, Draw, RandomResizedCrop, Resize
from data_pipeline.errors import DataError


def images(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(2).integers(0, 256, shape).astype(dtype)


def draw(count: int) -> Draw:
    return Draw(1, 2, 3, 40, count)


def boxes_of(crop: Cropping, height: int, width: int, count: int) -> NDArray[np.float64]:
    return crop.boxes(np.full(count, height), np.full(count, width), draw(count))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(5, 7), (12, 20), (9, 4)])
def test_resize_gives_what_torch_gives(size: tuple[int, int], channels: int) -> None:
    rows = images(4, channels, 8, 11, dtype="float32")
    resized = Resize(*size).changed(rows, draw(4))
    by_torch = torch.nn.functional.interpolate(
        torch.from_numpy(rows), size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(resized, by_torch.numpy(), rtol=1e-5, atol=1e-3)
    levels = Resize(*size).changed(rows.astype(np.uint8), draw(4))
    assert levels.dtype == np.uint8
    assert np.abs(levels - by_torch.numpy()).max() <= 1.0


def test_enlarging_a_crop_gives_what_pillow_gives() -> None:
    rows = images(5, 3, 20, 30)
    crop = RandomResizedCrop(40, 40, area=(0.1, 0.4))
    made = crop.changed(rows, draw(5))
    for image, box, result in zip(rows, boxes_of(crop, 20, 30, 5), made, strict=True):
        top, left, height, width = box.astype(int)
        part = image[:, top : top + height, left : left + width].transpose(1, 2, 0)
        by_pillow = Image.fromarray(np.ascontiguousarray(part)).resize(
            (40, 40), Image.Resampling.BILINEAR
        )
        assert np.abs(result - np.asarray(by_pillow, np.int16).transpose(2, 0, 1)).max() <= 2


def test_center_crop_of_a_square_is_torchvisions_256_and_224() -> None:
    (box,) = boxes_of(CenterCrop(224, 224), 480, 640, 1)
    # The shorter side becomes 256; 224 pixels of the middle are 420 of the image.
    assert box.tolist() == [30.0, 110.0, 420.0, 420.0]


def test_a_center_crop_of_the_whole_lies_within_pictures_of_all_sizes() -> None:
    sides = np.arange(1, 301)
    for size in (187, 224, 1, 7):
        for heights, widths in ((sides, sides), (sides, sides[::-1]), (sides, 3 * sides)):
            boxes = CenterCrop(size, size, of=1.0).boxes(heights, widths, draw(300))
            tops, lefts, tall, wide = boxes.T
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] > 0).all()
            assert (tops + tall <= heights).all()
            assert (lefts + wide <= widths).all()
    assert CenterCrop(187, 187, of=1.0).changed(images(1, 3, 3, 3), draw(1)).shape[2:] == (187, 187)


def test_center_crop_keeps_the_shape_of_its_window() -> None:
    (box,) = boxes_of(CenterCrop(10, 40, of=1.0), 100, 80, 1)
    assert box.tolist() == [40.0, 0.0, 20.0, 80.0]


def test_center_crop_at_its_own_size_is_a_plain_crop() -> None:
    rows = images(3, 3, 16, 24)
    cropped = CenterCrop(16, 16, of=1.0).changed(rows, draw(3))
    assert np.array_equal(cropped, rows[..., 4:20])


def by_torchvisions_rule(
    numbers: NDArray[np.float64],
    height: int,
    width: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> list[float]:
    """torchvision's `RandomResizedCrop.get_params`, with given uniform numbers."""
    logs = np.log(ratio)
    for attempt in range(10):
        target = height * width * (area[0] + (area[1] - area[0]) * numbers[2 * attempt])
        aspect = np.exp(logs[0] + (logs[1] - logs[0]) * numbers[2 * attempt + 1])
        wide, tall = round(np.sqrt(target * aspect)), round(np.sqrt(target / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = (
                int(numbers[20] * (height - tall + 1)),
                int(numbers[21] * (width - wide + 1)),
            )
            return [top, left, tall, wide]
    tall, wide = height, width
    if width / height < min(ratio):
        tall = round(width / min(ratio))
    elif width / height > max(ratio):
        wide = round(height * max(ratio))
    return [(height - tall) // 2, (width - wide) // 2, tall, wide]


@pytest.mark.parametrize("size", [(240, 320), (33, 17), (4, 400), (400, 4), (1, 1)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0)])
def test_random_boxes_follow_torchvisions_rule(
    size: tuple[int, int], area: tuple[float, float]
) -> None:
    crop = RandomResizedCrop(8, 8, area)
    numbers = draw(300).uniform(0.0, 1.0, 22)
    expected = [by_torchvisions_rule(one, *size, area, crop.ratio) for one in numbers]
    assert boxes_of(crop, *size, 300).tolist() == expected


def test_an_image_that_no_crop_fits_gives_the_largest_central_window_of_an_allowed_shape() -> None:
    wide = boxes_of(RandomResizedCrop(8, 8, (0.9, 1.0)), 30, 300, 5)
    assert wide.tolist() == [[0, 130, 30, 40]] * 5
    tall = boxes_of(RandomResizedCrop(8, 8, (0.9, 1.0)), 300, 30, 5)
    assert tall.tolist() == [[130, 0, 40, 30]] * 5


def test_areas_shapes_and_places_are_uniform() -> None:
    found = boxes_of(RandomResizedCrop(8, 8, (0.1, 0.4)), 10_000, 10_000, 4_000)
    top, left, height, width = found.T
    area = height * width / 1e8
    assert stats.kstest(area, stats.uniform(0.1, 0.3).cdf).pvalue > 1e-3
    ratio = np.log(width / height)
    spread = 2 * np.log(4 / 3)
    assert stats.kstest(ratio, stats.uniform(-spread / 2, spread).cdf).pvalue > 1e-3
    for first, length in ((top, height), (left, width)):
        assert stats.kstest(first / (10_000 - length), "uniform").pvalue > 1e-3


def test_each_image_may_have_its_own_size() -> None:
    heights, widths = np.array([10, 200, 50]), np.array([300, 20, 50])
    crop = RandomResizedCrop(8, 8)
    found = crop.boxes(heights, widths, draw(3))
    assert (found[:, 0] + found[:, 2] <= heights).all()
    assert (found[:, 1] + found[:, 3] <= widths).all()
    assert (found[:, :2] >= 0).all()
    assert crop.size == (8, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize(0, 3), r"Resize\(height=0\): height must be 1 or more"),
        (lambda: CenterCrop(3, -1), r"CenterCrop\(width=-1\): width must be 1 or more"),
        (lambda: CenterCrop(3, 3, of=1.5), r"CenterCrop\(of=1.5\): of must lie in \(0, 1\]"),
        (lambda: RandomResizedCrop(3, 3, area=(0, 1)), r"area must be two .*both in \(0, 1\]"),
        (lambda: RandomResizedCrop(3, 3, area=(0.5, 1.1)), r"area must be two"),
        (lambda: RandomResizedCrop(3, 3, ratio=(2, 1)), r"ratio must be two .*both above 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_image_of_bytes_or_floats_is_refused() -> None:
    with pytest.raises(DataError, match=r"Resize works on images"):
        Resize(2, 2).changed(images(3, 4), draw(3))
    with pytest.raises(DataError, match=r"CenterCrop works on images of uint8 or float32"):
        CenterCrop(2, 2).changed(images(3, 1, 4, 4, dtype="int16"), draw(3))
