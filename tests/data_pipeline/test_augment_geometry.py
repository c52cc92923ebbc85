import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats

from data_pipeline.augment import Draw, Geometry, Rotation, Shear, Translate, Zoom
from data_pipeline.augment.border import FILL_MODES
from data_pipeline.errors import DataError

SCIPY_MODES = {
    "constant": "grid-constant",
    "nearest": "nearest",
    "reflect": "reflect",
    "wrap": "grid-wrap",
}
ALL: dict[str, Any] = {
    "rotation": 40,
    "height_shift": 0.3,
    "width_shift": 0.2,
    "shear": 25,
    "zoom": (0.5, 1.8),
}


def images(*shape: int, dtype: str = "uint8") -> NDArray[Any]:
    return np.random.default_rng(5).integers(0, 256, shape).astype(dtype)


def draw(count: int) -> Draw:
    return Draw(3, 1, 0, 17, count)


def by_keras_matrices(
    height: int, width: int, angle: float, shift: tuple[float, float], shear: float, zoom: Any
) -> NDArray[np.float64]:
    """Keras' `apply_affine_transform`, step by step: R, then T, S and Z from the right."""
    turn, slant = math.radians(angle), math.radians(shear)
    rotation = [[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0]]
    steps = [
        np.array([*rotation, [0, 0, 1]]),
        np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]]),
        np.array([[1, -math.sin(slant), 0], [0, math.cos(slant), 0], [0, 0, 1]]),
        np.diag([zoom[0], zoom[1], 1.0]),
    ]
    row, column = height / 2 - 0.5, width / 2 - 0.5
    there = np.array([[1, 0, row], [0, 1, column], [0, 0, 1]])
    back = np.array([[1, 0, -row], [0, 1, -column], [0, 0, 1]])
    found: NDArray[np.float64] = np.linalg.multi_dot([there, *steps, back])[:2]
    return found


def resampled_by_scipy(
    image: NDArray[Any], matrix: NDArray[np.float64], mode: str, fill: float
) -> NDArray[np.float64]:
    return np.stack(
        [
            ndimage.affine_transform(
                channel.astype(np.float64),
                matrix[:, :2],
                matrix[:, 2],
                order=1,
                mode=SCIPY_MODES[mode],
                cval=fill,
            )
            for channel in image
        ]
    )


@pytest.mark.parametrize("mode", FILL_MODES)
@pytest.mark.parametrize("shape", [(6, 3, 9, 13), (5, 1, 12, 7), (3, 2, 1, 4)])
def test_float_images_are_those_of_scipy_for_every_fill_mode(
    mode: str, shape: tuple[int, ...]
) -> None:
    rows = images(*shape, dtype="float32")
    geometry = Geometry(**ALL, fill_mode=mode, fill=7.5)
    changed = geometry.changed(rows, draw(shape[0]))
    maps = geometry.maps(shape[2], shape[3], draw(shape[0]))
    assert changed.dtype == np.float32
    for before, after, matrix in zip(rows, changed, maps, strict=True):
        expected = resampled_by_scipy(before, matrix, mode, 7.5)
        np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("mode", FILL_MODES)
def test_bytes_are_those_of_scipy_rounded(mode: str) -> None:
    rows = images(20, 3, 11, 8)
    geometry = Geometry(**ALL, fill_mode=mode, fill=200)
    changed = geometry.changed(rows, draw(20))
    assert changed.dtype == np.uint8
    for before, after, matrix in zip(rows, changed, geometry.maps(11, 8, draw(20)), strict=True):
        expected = resampled_by_scipy(before, matrix, mode, 200)
        assert np.abs(after - expected).max() <= 0.5 + 1e-9


def test_maps_are_keras_matrices_of_uniform_numbers() -> None:
    height, width = 11, 8
    maps = Geometry(**ALL).maps(height, width, draw(50))
    numbers = draw(50).uniform(0.0, 1.0, 6)
    for found, one in zip(maps, numbers, strict=True):
        angle, down, right, shear = (2 * one[:4] - 1) * [40, 0.3 * height, 0.2 * width, 25]
        zoom = 0.5 + 1.3 * one[4:]
        expected = by_keras_matrices(height, width, angle, (down, right), shear, zoom)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_positive_angle_turns_clockwise_as_a_negative_one_of_pillow_does() -> None:
    image = np.zeros((21, 21), np.uint8)
    image[4:9, 11:19] = 250
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1.5)
    rows = np.repeat(smooth[None, None], 10, axis=0)
    rotation = Rotation(30, fill_mode="constant")
    turned = rotation.changed(rows, draw(10))
    angles = 60 * draw(10).uniform(0.0, 1.0, 6)[:, 0] - 30
    for after, angle in zip(turned[:, 0], angles, strict=True):
        by_pillow = Image.fromarray(smooth).rotate(-angle, Image.Resampling.BILINEAR)
        inner = np.asarray(by_pillow)[4:-4, 4:-4]
        np.testing.assert_allclose(after[4:-4, 4:-4], inner, atol=1e-2)


def test_a_shift_by_whole_pixels_moves_the_pixels_of_a_hand_computation() -> None:
    class OneRight(Draw):
        def uniform(self, low: float = 0.0, high: float = 1.0, count: Any = None) -> Any:
            assert (low, high, count) == (0.0, 1.0, 6)
            return np.array([[0.5, 0.5, 1.0, 0.5, 0.5, 0.5]])

    row = np.array([[[[1, 2, 3, 4]]]], np.uint8)
    expected = {
        "constant": [2, 3, 4, 9],
        "nearest": [2, 3, 4, 4],
        "reflect": [2, 3, 4, 4],
        "wrap": [2, 3, 4, 1],
    }
    for mode, values in expected.items():
        moved = Translate(width=0.25, fill_mode=mode, fill=9).changed(row, OneRight(0, 0, 0, 0, 1))
        assert moved[0, 0, 0].tolist() == values


def test_a_zoom_below_one_shows_the_middle_of_the_image_larger() -> None:
    row = np.array([[[[0, 10, 20, 30]]]], np.float32)
    shown = Zoom(0.5, 0.5).changed(row, draw(1))
    # Places -1.5, -0.5, 0.5 and 1.5 from the middle are read half as far from it.
    np.testing.assert_allclose(shown[0, 0, 0], [7.5, 12.5, 17.5, 22.5])


@pytest.mark.parametrize(
    ("single", "same"),
    [
        (Rotation(20, "wrap"), Geometry(rotation=20, fill_mode="wrap")),
        (Shear(20, "reflect"), Geometry(shear=20, fill_mode="reflect")),
        (
            Translate(0.2, 0.4, "constant", 3),
            Geometry(height_shift=0.2, width_shift=0.4, fill_mode="constant", fill=3),
        ),
        (Zoom(0.5, 1.5), Geometry(zoom=(0.5, 1.5))),
    ],
)
def test_each_single_transform_is_geometry_with_one_argument(single: Any, same: Geometry) -> None:
    rows = images(9, 3, 7, 10)
    assert np.array_equal(single.changed(rows, draw(9)), same.changed(rows, draw(9)))


@pytest.mark.parametrize("mode", FILL_MODES)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_geometry_without_arguments_leaves_every_pixel(mode: str, dtype: str) -> None:
    rows = images(4, 3, 6, 9, dtype=dtype)
    changed = Geometry(fill_mode=mode).changed(rows, draw(4))
    assert np.array_equal(changed, rows)
    assert changed is not rows


def test_all_channels_are_moved_together() -> None:
    rows = images(10, 1, 8, 8).repeat(3, axis=1)
    changed = Geometry(**ALL).changed(rows, draw(10))
    assert np.array_equal(changed[:, 0], changed[:, 1])
    assert np.array_equal(changed[:, 0], changed[:, 2])


def test_angles_shifts_shears_and_zooms_are_uniform_and_independent() -> None:
    count = 4_000
    numbers = draw(count).uniform(0.0, 1.0, 6)
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers.T) - np.eye(6)).max() < 0.06
    angles = np.arctan2(*Rotation(15).geometry().maps(8, 8, draw(count))[:, ::-1, 0].T)
    assert stats.kstest(np.degrees(angles), stats.uniform(-15, 30).cdf).pvalue > 1e-3
    zooms = Zoom(0.8, 1.3).geometry().maps(8, 8, draw(count))
    for zoom in (zooms[:, 0, 0], zooms[:, 1, 1]):
        assert stats.kstest(zoom, stats.uniform(0.8, 0.5).cdf).pvalue > 1e-3


def test_rows_that_are_a_view_give_what_a_copy_gives() -> None:
    rows = images(4, 12, 9, 3).transpose(0, 3, 1, 2)
    rows.flags.writeable = False
    copied = np.ascontiguousarray(rows)
    geometry = Geometry(**ALL)
    assert np.array_equal(geometry.changed(rows, draw(4)), geometry.changed(copied, draw(4)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rotation(-1), r"Rotation\(degrees=-1\): degrees must be 0 or more"),
        (lambda: Rotation(math.nan), r"Rotation\(degrees=nan\): degrees must be 0 or more"),
        (lambda: Shear(math.inf), r"Shear\(degrees=inf\): degrees must be 0 or more"),
        (lambda: Translate(height=-0.1), r"Translate\(height=-0.1\): height must be 0 or more"),
        (lambda: Zoom(0.0, 1.0), r"Zoom\(low=0.0\): low must be above 0"),
        (lambda: Zoom(1.0, 0.5), r"Zoom\(high=0.5\): high must be finite and not below low"),
        (lambda: Geometry(zoom=(0, 1)), r"Geometry\(zoom=\(0, 1\)\): zoom must be two numbers ab"),
        (lambda: Geometry(fill_mode="x"), r"Geometry\(fill_mode='x'\): fill_mode must be one of"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_images_of_other_types_and_fills_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"Rotation works on images of uint8 or float32, not o"):
        Rotation(1).changed(images(1, 1, 2, 2, dtype="int64"), draw(1))
    with pytest.raises(DataError, match=r"Shear works on images \(C, H, W\)"):
        Shear(1).changed(images(1, 4), draw(1))
    with pytest.raises(DataError, match=r"Zoom\(fill=-1\) does not fit images of uint8"):
        Zoom(1, 2, "constant", -1).changed(images(1, 1, 2, 2), draw(1))
