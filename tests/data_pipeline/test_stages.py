"""What is done in one pass over a batch has the bits of what is done step by step."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import DataError, Dataset, Ragged, write_dataset
from data_pipeline.augment import (
    CenterCrop,
    Cropping,
    Draw,
    Flip,
    Resize,
    Samples,
    Shift,
    Transform,
    VerticalFlip,
)
from data_pipeline.augment.crops import RandomResizedCrop
from data_pipeline.augment.transform import AfterScaling
from data_pipeline.batches import BatchBuilder
from data_pipeline.heads import Crops, Gathering, Span, Windows
from data_pipeline.images import decode_jpeg_or_png
from data_pipeline.manifest import Column
from data_pipeline.recipe import Recipe, training_transforms
from data_pipeline.stages import stages_of
from data_pipeline.standardize import Standardization, standardization

NUM_ROWS = 30


class PlainShift(Shift):
    """A shift that no head knows."""


class PlainFlip(Flip):
    """A flip that no head knows."""


def plain(transform: Transform) -> Transform:
    if isinstance(transform, Shift):
        return PlainShift(transform.pixels, transform.fill, transform.fill_mode)
    assert isinstance(transform, Flip)
    return PlainFlip(transform.probability)


def built(dataset: Dataset, recipe: Recipe, span: Span) -> dict[str, NDArray[Any]]:
    rows = recipe.sampled(dataset).rows(span.epoch, span.start, span.stop)
    builder = BatchBuilder(dataset, recipe)
    columns = builder.build(span, rows, builder.buffers(len(rows))).columns
    return {name: tensor.numpy().copy() for name, tensor in columns.items()}


def recipe_of(
    transforms: list[Transform], scaling: Standardization | None = None, **more: Any
) -> Recipe:
    return Recipe(
        columns=("x",),
        seed=5,
        sampling="shuffled",
        inputs="x",
        transforms=tuple(transforms),
        standardized={"x": scaling} if scaling else {},
        **more,
    )


def stored(folder: Path, dtype: str) -> Dataset:
    """Images in shards of 7 rows, each channel with statistics of its own."""
    rows = np.random.default_rng(3).uniform(0, 255, (NUM_ROWS, 3, 6, 5))
    rows *= np.array([0.2, 0.6, 1.0])[:, None, None]
    columns = [Column(name="x", kind="tensor", dtype=dtype, shape=(3, 6, 5))]
    parts = {"train": {"x": rows.astype(dtype)}}
    write_dataset(folder, "images", columns, parts, rows_per_shard=7)
    return Dataset(folder)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = tmp_path_factory.mktemp("stages")
    return {dtype: stored(root / dtype, dtype) for dtype in ("uint8", "float32")}


SHIFTS = st.builds(Shift, st.integers(0, 8), st.sampled_from([0.0, 7.0, 255.0]))
FLIPS = st.builds(Flip, st.sampled_from([0.0, 0.3, 0.5, 1.0]))


@given(
    dtype=st.sampled_from(["uint8", "float32"]),
    by_channel=st.booleans(),
    transforms=st.one_of(
        st.tuples(SHIFTS, FLIPS).map(list), SHIFTS.map(lambda s: [s]), FLIPS.map(lambda f: [f])
    ),
    edges=st.tuples(st.integers(0, NUM_ROWS), st.integers(0, NUM_ROWS)).map(sorted),
    epoch=st.integers(0, 99),
    micro_batch=st.sampled_from([None, 1, 4]),
)
@settings(deadline=None, max_examples=120)
def test_moving_mirroring_and_scaling_in_one_pass_have_the_bits_of_one_after_the_other(
    datasets: dict[str, Dataset],
    dtype: str,
    by_channel: bool,
    transforms: list[Transform],
    edges: list[int],
    epoch: int,
    micro_batch: int | None,
) -> None:
    dataset = datasets[dtype]
    scaling = standardization(dataset, "x", scaled=True)
    if not by_channel:
        scaling = Standardization(np.array([0.01], np.float32), np.array([-0.7], np.float32))
    span = Span(epoch, *edges)
    fused = recipe_of(transforms, scaling, micro_batch=micro_batch)
    stepwise = recipe_of([plain(one) for one in transforms], scaling)
    assert isinstance(stages_of(dataset, fused).heads["x"], Windows)
    assert isinstance(stages_of(dataset, stepwise).heads["x"], Gathering)
    one, other = built(dataset, fused, span)["x"], built(dataset, stepwise, span)["x"]
    assert one.dtype == other.dtype == np.float32
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    "transforms",
    [
        [Flip(), Shift(1)],
        [Shift(2, fill_mode="reflect")],
        [Shift(1), Flip(), VerticalFlip()],
        [Shift(1), Flip(), Flip()],
        [VerticalFlip()],
        [PlainShift(1), Flip()],
    ],
    ids=repr,
)
def test_what_no_head_can_do_is_done_step_by_step(
    datasets: dict[str, Dataset], transforms: list[Transform]
) -> None:
    dataset = datasets["uint8"]
    scaling = standardization(dataset, "x", scaled=True)
    assert scaling is not None
    recipe = recipe_of(transforms, scaling)
    stages = stages_of(dataset, recipe)
    assert isinstance(stages.heads["x"], Gathering)
    assert [one for _, one in stages.raw] == transforms
    rows = recipe.sampled(dataset).rows(1, 4, 20)
    images = np.empty((16, 3, 6, 5), np.uint8)
    dataset.gather("x", rows, images)
    for place, one in enumerate(transforms):
        samples = Samples({"x": images}, dataset.columns, "x")
        one(samples, Draw(5, 1, place, 4, 16))
        images = samples.arrays["x"]
    expected = np.empty(images.shape, np.float32)
    scaling.apply(images, expected)
    assert built(dataset, recipe, Span(1, 4, 20))["x"].tobytes() == expected.tobytes()


@pytest.mark.parametrize("fill", [0.5, -1.0, 256.0])
def test_a_fill_that_bytes_cannot_hold_is_refused_by_the_head_too(
    datasets: dict[str, Dataset], fill: float
) -> None:
    dataset = datasets["uint8"]
    scaling = standardization(dataset, "x", scaled=True)
    with pytest.raises(DataError, match=r"does not fit images of uint8"):
        BatchBuilder(dataset, recipe_of([Shift(1, fill), Flip()], scaling))


def jpeg(height: int, width: int, channels: int, seed: int) -> bytes:
    """A picture with edges and slopes, none of them the same on both sides."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (5, 6, channels), dtype=np.uint8)
    image = Image.fromarray(small if channels == 3 else small[..., 0])
    written = io.BytesIO()
    image.resize((width, height), Image.Resampling.BICUBIC).save(written, "JPEG", quality=90)
    return written.getvalue()


SIZES = [(24, 31), (40, 30), (33, 33), (17, 60), (90, 22), (28, 29)]


def pictures(channels: int, times: int = 1) -> tuple[Dataset, list[bytes]]:
    sizes = [(height * times, width * times) for height, width in SIZES] * 5
    encoded = [jpeg(*size, channels, number) for number, size in enumerate(sizes)]
    rows = Ragged.of_bytes(encoded)
    dataset = Dataset.from_arrays({"x": rows})
    # As the writer describes encoded pictures.
    dataset.columns["x"] = Column(name="x", kind="image", dtype="uint8", shape=(channels,))
    return dataset, encoded


def step_by_step(
    dataset: Dataset, encoded: list[bytes], recipe: Recipe, span: Span
) -> NDArray[Any]:
    """Each whole picture decoded, and the transforms run on it alone."""
    channels = dataset.column("x").shape[0]
    rows = recipe.sampled(dataset).rows(span.epoch, span.start, span.stop)
    made = []
    for position, row in enumerate(rows.tolist(), start=span.start):
        image = decode_jpeg_or_png(encoded[row], channels).transpose(2, 0, 1)[None]
        samples = Samples({"x": np.ascontiguousarray(image)}, dataset.columns, "x")
        for place, one in enumerate(recipe.transforms):
            one(samples, Draw(recipe.seed, span.epoch, place, position, 1))
        made.append(samples.arrays["x"])
    images = np.concatenate(made)
    if not recipe.standardized:
        return images
    out = np.empty(images.shape, np.float32)
    recipe.standardized["x"].apply(images, out)
    return out


ONE = np.ones(1, np.float32)
BY_CHANNEL = Standardization(
    np.array([0.02, 0.01, 0.03], np.float32), np.array([-2.0, -1.0, 0.5], np.float32), axis=1
)


@pytest.mark.parametrize("crop", [Resize(20, 18), CenterCrop(16, 16), RandomResizedCrop(19, 24)])
@pytest.mark.parametrize("flips", [[], [Flip()], [Flip(), VerticalFlip()]])
@pytest.mark.parametrize("channels", [1, 3])
def test_encoded_pictures_get_the_bits_of_decoding_them_whole(
    crop: Cropping, flips: list[Transform], channels: int
) -> None:
    dataset, encoded = pictures(channels)
    span = Span(2, 3, 27)
    raw = recipe_of([crop, *flips])
    assert isinstance(stages_of(dataset, raw).heads["x"], Crops)
    found = built(dataset, raw, span)["x"]
    assert found.dtype == np.uint8
    large = (np.array([box_of(dataset, encoded, raw, span, n) for n in range(24)]) >= 2).all(axis=1)
    expected = step_by_step(dataset, encoded, raw, span)
    assert found[~large].tobytes() == expected[~large].tobytes()
    assert (~large).sum() >= 12
    scaling = BY_CHANNEL if channels == 3 else Standardization(ONE, ONE, axis=1)
    scaled = recipe_of([crop, *flips], scaling)
    found = built(dataset, scaled, span)["x"]
    expected = step_by_step(dataset, encoded, scaled, span)
    # Scaled at once, a pixel is not rounded to a whole level first: half of one is the most.
    most = 0.0 if len(flips) > 1 else 0.51 * float(np.abs(scaling.scale).max())
    assert np.abs(found[~large] - expected[~large]).max() <= most


def box_of(
    dataset: Dataset, encoded: list[bytes], recipe: Recipe, span: Span, number: int
) -> list[float]:
    """How many times larger a sample's box is than what it is resampled to, on both sides."""
    row = int(recipe.sampled(dataset).rows(span.epoch, span.start, span.stop)[number])
    width, height = Image.open(io.BytesIO(encoded[row])).size
    crop = recipe.transforms[0]
    assert isinstance(crop, Cropping)
    draw = Draw(recipe.seed, span.epoch, 0, span.start + number, 1)
    (box,) = crop.boxes(np.array([height]), np.array([width]), draw)
    return [box[2] / crop.size[0], box[3] / crop.size[1]]


@pytest.mark.parametrize("crop", [Resize(26, 25), CenterCrop(24, 27), RandomResizedCrop(15, 15)])
def test_decoding_at_a_reduced_size_stays_close_to_decoding_whole(crop: Cropping) -> None:
    dataset, encoded = pictures(3, times=5)
    span = Span(0, 0, NUM_ROWS)
    recipe = recipe_of([crop, Flip()])
    found = built(dataset, recipe, span)["x"].astype(int)
    difference = np.abs(found - step_by_step(dataset, encoded, recipe, span))
    assert difference.any()  # some were decoded at a reduced size
    assert difference.mean() < 1.5


def test_encoded_pictures_of_any_size_want_a_transform_that_gives_them_one() -> None:
    dataset, _ = pictures(3)
    for transforms in ([], [Flip()], [AfterScaling(Resize(4, 4))]):
        with pytest.raises(DataError, match="let the transforms begin with Resize, CenterCrop or"):
            stages_of(dataset, recipe_of(list(transforms)))


def test_a_picture_that_cannot_be_decoded_is_named_by_its_row() -> None:
    dataset = Dataset.from_arrays({"x": Ragged.of_bytes([jpeg(20, 20, 3, 1)] * 3 + [b"no jpeg"])})
    dataset.columns["x"] = Column(name="x", kind="image", dtype="uint8", shape=(3,))
    recipe = Recipe(columns=("x",), inputs="x", transforms=(Resize(8, 8),))
    with pytest.raises(DataError, match=r"^arrays: row 3: "):
        built(dataset, recipe, Span(0, 0, 4))


def noting(name: str, seen: list[tuple[str, str, int, float]]) -> Transform:
    def note(samples: Samples, draw: Draw) -> None:
        rows = samples.arrays["x"]
        assert draw.num_samples == len(rows)
        seen.append((name, str(rows.dtype), len(rows), float(rows.reshape(-1)[0])))

    return note


def doubled(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
    samples.arrays["x"] = samples.arrays["x"] * np.float32(2)


def test_raw_transforms_come_before_the_scaling_and_late_ones_after_it_as_listed() -> None:
    seen: list[tuple[str, str, int, float]] = []
    late = AfterScaling(noting("late", seen))
    transforms: list[Transform] = [
        late,
        noting("first", seen),
        doubled,
        AfterScaling(noting("last", seen)),
    ]
    transforms += [noting("second", seen)]
    dataset = Dataset.from_arrays({"x": np.full((3, 2), 5.0)})
    scaling = Standardization(np.ones(1, np.float32), np.full(1, -4.0, np.float32))
    recipe = Recipe(
        columns=("x",), inputs="x", transforms=tuple(transforms), standardized={"x": scaling}
    )
    built(dataset, recipe, Span(0, 0, 3))
    calls = [(name, value) for name, _, count, value in seen if count == 3]
    assert calls == [("first", 5.0), ("second", 10.0), ("late", 6.0), ("last", 6.0)]


@pytest.mark.parametrize(("micro_batch", "sizes"), [(4, [4, 4, 3]), (None, [11]), (1, [1] * 11)])
def test_a_transform_is_given_one_micro_batch_at_a_time(
    micro_batch: int | None, sizes: list[int]
) -> None:
    seen: list[tuple[str, str, int, float]] = []
    dataset = Dataset.from_arrays({"x": np.zeros((20, 2))})
    recipe = recipe_of([noting("any", seen)], micro_batch=micro_batch)
    built(dataset, recipe, Span(0, 8, 19))
    assert [count for _, _, count, _ in seen][1:] == sizes  # the first rows were tried before


def test_a_crop_at_the_head_of_training_takes_the_place_of_what_all_samples_go_through() -> None:
    resize, crop, flip = Resize(8, 8), RandomResizedCrop(8, 8), Flip()
    assert training_transforms([resize], [crop, flip]) == (crop, flip)
    assert training_transforms([resize], [flip]) == (resize, flip)
    assert training_transforms([resize], []) == (resize,)
