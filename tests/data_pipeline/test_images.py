import contextlib
import io
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data_pipeline import images
from data_pipeline.errors import DataError
from data_pipeline.images import decode_box, decode_jpeg_or_png, encoded_size
from data_pipeline.resample import Box, resample


def scene(height: int, width: int, seed: int = 0) -> Image.Image:
    """Waves with shapes before them, as smooth and as sharp as a photo."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin((a * x + b * y) / 30) for a, b in draws.uniform(-1, 1, (3, 2))]
    image = Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        left, top = draws.uniform(0, width), draws.uniform(0, height)
        red, green, blue = draws.integers(0, 256, 3).tolist()
        shape = [left, top, left + width / 4, top + height / 4]
        draw.ellipse(shape, fill=(red, green, blue))
    return image


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(encoded: bytes, mode: str = "RGB") -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert(mode))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(48, 64), (37, 53), (1, 1), (3, 7), (2, 100)])
def test_a_jpeg_has_the_pixels_that_pillow_finds(
    subsampling: int, progressive: bool, size: tuple[int, int]
) -> None:
    encoded = saved(scene(*size), quality=88, subsampling=subsampling, progressive=progressive)
    found = decode_jpeg_or_png(encoded)
    assert found.dtype == np.uint8
    assert np.array_equal(found, by_pillow(encoded))
    assert encoded_size(encoded) == (*size, 3)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_may_be_of_any_kind(kind: Any) -> None:
    for format_name in ("JPEG", "PNG"):
        encoded = saved(scene(20, 30), format_name)
        assert np.array_equal(decode_jpeg_or_png(kind(encoded)), by_pillow(encoded))
        assert encoded_size(kind(encoded)) == (20, 30, 3)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(1, 90),
    st.integers(1, 60),
    st.integers(0, 100),
    st.sampled_from([0, 1, 2]),
    st.booleans(),
    st.sampled_from([0, 3]),
)
def test_rows_that_are_needed_have_the_bits_that_they_have_in_the_whole_image(
    height: int, width: int, num_rows: int, subsampling: int, progressive: bool, restart: int
) -> None:
    encoded = saved(
        scene(height, width),
        subsampling=subsampling,
        progressive=progressive,
        restart_marker_blocks=restart,
    )
    found = decode_jpeg_or_png(encoded, num_rows=num_rows)
    assert min(num_rows, height) <= len(found) <= height
    assert np.array_equal(found, by_pillow(encoded)[: len(found)])


def test_rows_that_are_not_needed_are_left_out_of_a_sequential_jpeg_only() -> None:
    image = scene(64, 64)
    assert len(decode_jpeg_or_png(saved(image), num_rows=20)) == 20
    assert len(decode_jpeg_or_png(saved(image, progressive=True), num_rows=20)) == 64


@settings(deadline=None, max_examples=100)
@given(
    st.integers(16, 200), st.integers(16, 200), st.integers(1, 200), st.integers(1, 200), st.data()
)
def test_a_reduced_image_is_the_smallest_that_is_large_enough(
    height: int, width: int, least_height: int, least_width: int, data: st.DataObject
) -> None:
    encoded = saved(scene(height, width), quality=90)
    factor = 1
    for larger in (2, 4, 8):
        if -(-height // larger) >= least_height and -(-width // larger) >= least_width:
            factor = larger
    found = decode_jpeg_or_png(encoded, min_size=(least_height, least_width))
    assert found.shape == (-(-height // factor), -(-width // factor), 3)
    num_rows = data.draw(st.integers(0, height))
    part = decode_jpeg_or_png(encoded, min_size=(least_height, least_width), num_rows=num_rows)
    assert len(part) >= min(-(-num_rows // factor), len(found))
    assert np.array_equal(part, found[: len(part)])


def test_a_reduced_image_has_about_the_means_of_the_pixels() -> None:
    encoded = saved(scene(160, 240), quality=95, subsampling=0)
    for factor in (2, 4, 8):
        small = decode_jpeg_or_png(encoded, min_size=(160 // factor, 240 // factor))
        tiles = by_pillow(encoded).reshape(160 // factor, factor, 240 // factor, factor, 3)
        assert np.abs(small - tiles.mean(axis=(1, 3))).mean() < 1.5


@pytest.mark.parametrize("box", [Box(30, 21, 120, 200), Box(3, 5, 90, 77), Box(0, 0, 240, 320)])
@pytest.mark.parametrize("side", [20, 59, 160])
def test_a_box_is_resampled_as_pillow_resizes_it(box: Box, side: int) -> None:
    encoded = saved(scene(240, 320), quality=90)
    image, place = decode_box(encoded, box, (side, side))
    out = np.empty((3, side, side), dtype=np.uint8)
    resample(image, place, out)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    expected = np.asarray(
        Image.open(io.BytesIO(encoded)).resize((side, side), Image.Resampling.BILINEAR, box=edges)
    )
    assert np.abs(out.transpose(1, 2, 0).astype(float) - expected).mean() < 3
    assert max(place.height / side, place.width / side) < 4
    assert (image.shape[1] < 320) == (min(box.height, box.width) >= 2 * side)


def test_a_box_at_the_lower_right_corner_fits_into_the_reduced_image() -> None:
    encoded = saved(scene(123, 157))
    for side in (7, 15, 30, 60):
        image, place = decode_box(encoded, Box(0.5, 0.5, 122.5, 156.5), (side, side))
        resample(image, place, np.empty((3, side, side), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_and_colour_are_turned_into_each_other(kind: str) -> None:
    colour, grey = saved(scene(40, 50), kind), saved(scene(40, 50).convert("L"), kind)
    assert encoded_size(grey) == (40, 50, 1)
    as_colour = decode_jpeg_or_png(grey)
    assert np.array_equal(as_colour, np.repeat(decode_jpeg_or_png(grey, 1), 3, axis=2))
    assert np.array_equal(as_colour, by_pillow(grey))
    found = decode_jpeg_or_png(colour, 1)
    assert found.shape == (40, 50, 1)
    assert np.abs(found[..., 0].astype(int) - by_pillow(colour, "L")).mean() < 1


def test_a_cmyk_jpeg_comes_out_as_pillow_converts_it() -> None:
    image = scene(100, 120)
    encoded = saved(image.convert("CMYK"), quality=95)
    assert encoded_size(encoded) == (100, 120, 4)
    assert np.array_equal(decode_jpeg_or_png(encoded), by_pillow(encoded))
    assert np.abs(decode_jpeg_or_png(encoded).astype(int) - np.asarray(image)).mean() < 4
    whole, place = decode_box(encoded, Box(0, 0, 100, 120), (20, 20))
    assert whole.shape == (100, 120, 3)
    assert place == Box(0, 0, 100, 120)


def test_pngs_of_every_kind_are_read_without_a_warning() -> None:
    image = scene(12, 16)
    kinds = {"RGBA": 4, "LA": 2, "1": 1, "P": 3}
    for mode, channels in kinds.items():
        encoded = saved(image.convert("L" if mode == "1" else mode).convert(mode), "PNG")
        assert encoded_size(encoded) == (12, 16, channels)
        assert decode_jpeg_or_png(encoded).shape == (12, 16, 3)
    transparent = saved(image.convert("P"), "PNG", transparency=bytes(range(256)))
    assert np.array_equal(
        decode_jpeg_or_png(transparent), by_pillow(saved(image.convert("P"), "PNG"))
    )


def test_of_16_bits_the_upper_8_are_taken() -> None:
    levels = np.arange(0, 65_536, 64, dtype=np.uint16).reshape(32, 32)
    found = decode_jpeg_or_png(saved(Image.fromarray(levels), "PNG"))
    assert np.array_equal(found[..., 0], levels >> 8)


def test_other_formats_are_read_by_pillow() -> None:
    for kind in ("BMP", "GIF", "WEBP", "TIFF"):
        encoded = saved(scene(12, 16), kind)
        assert np.array_equal(decode_jpeg_or_png(encoded), by_pillow(encoded))
        assert encoded_size(encoded)[:2] == (12, 16)


def test_the_orientation_in_exif_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = saved(scene(20, 30), exif=exif)
    assert decode_jpeg_or_png(encoded).shape == (20, 30, 3)
    assert encoded_size(encoded) == (20, 30, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_image_cut_short_anywhere_is_refused(kind: str) -> None:
    encoded = saved(scene(60, 80), kind)
    end = len(encoded) - (3 if kind == "JPEG" else 100)  # Pillow can do without the last checksums
    for length in [*range(0, 700, 7), *range(700, end, 97), end]:
        with pytest.raises(DataError, match=r"bytes"):
            decode_jpeg_or_png(encoded[:length])


def test_a_jpeg_cut_short_is_refused_whatever_rows_are_needed() -> None:
    encoded = saved(scene(60, 80))
    for num_rows in (0, 20, 57, 60):
        with pytest.raises(DataError, match="Premature end of JPEG"):
            decode_jpeg_or_png(encoded[:-30], num_rows=num_rows)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_damaged_image_is_refused_or_read_and_nothing_else_happens(data: st.DataObject) -> None:
    encoded = bytearray(saved(scene(40, 50), data.draw(st.sampled_from(["JPEG", "PNG"]))))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        if 140 < at < 190:  # the size: a larger one may be read, slowly
            continue
        encoded[at] = data.draw(st.integers(0, 255))
    for num_rows in (None, 17):
        with contextlib.suppress(DataError):
            assert decode_jpeg_or_png(encoded, num_rows=num_rows).shape[2] == 3


def test_a_jpeg_that_ends_amid_its_pixels_is_refused() -> None:
    encoded = bytearray(saved(scene(64, 64), quality=95))
    start = encoded.index(b"\xff\xda") + 40
    encoded[start : start + 2] = b"\xff\xd9"
    for num_rows in (None, 60):
        with pytest.raises(DataError, match="Corrupt JPEG data: premature end"):
            decode_jpeg_or_png(encoded, num_rows=num_rows)


def test_bytes_after_the_image_and_before_its_end_are_put_up_with() -> None:
    encoded = saved(scene(30, 40))
    assert np.array_equal(decode_jpeg_or_png(encoded + b"more"), by_pillow(encoded))
    between = encoded[:-2] + b"\x01\x02\x03" + encoded[-2:]
    assert np.array_equal(decode_jpeg_or_png(between), by_pillow(encoded))


@pytest.mark.parametrize("nothing", [b"", b"\xff\xd8\xff", b"hello, world", bytes(100)])
def test_what_is_no_image_is_refused_by_name(nothing: bytes) -> None:
    for read in (decode_jpeg_or_png, encoded_size):
        with pytest.raises(DataError, match=f"{len(nothing)} bytes"):
            read(nothing)


def test_two_channels_are_refused() -> None:
    with pytest.raises(DataError, match="3 channels or 1, not 2"):
        decode_jpeg_or_png(saved(scene(8, 8)), 2)


@pytest.mark.parametrize(("module", "kind"), [("simplejpeg", "JPEG"), ("PIL.Image", "PNG")])
def test_a_missing_library_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str, kind: str
) -> None:
    encoded = saved(scene(8, 8), kind)
    monkeypatch.setitem(sys.modules, module, None)
    for library in (images._jpeg_library, images._pillow):
        library.cache_clear()
    try:
        with pytest.raises(DataError, match=r"pip install 'distrain\[images\]'"):
            decode_jpeg_or_png(encoded)
    finally:
        for library in (images._jpeg_library, images._pillow):
            library.cache_clear()
