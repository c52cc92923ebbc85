from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage, stats

from data_pipeline.augment import AfterScaling, Draw, Flip, Samples, Shift, Transform, VerticalFlip
from data_pipeline.augment.transform import is_after_scaling, run
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column

PIPELINE: list[Transform] = [Shift(2), Flip(), VerticalFlip(), Shift(1, fill=7)]
COLUMNS = {"x": Column(name="x", kind="tensor", dtype="float32", shape=(1,))}


def apply(
    transforms: list[Transform],
    rows: NDArray[Any],
    *,
    seed: int = 0,
    epoch: int = 0,
    first_position: int = 0,
) -> NDArray[Any]:
    """Sends rows, which stand at consecutive positions, through transforms."""
    samples = Samples({"x": rows}, COLUMNS, "x")
    placed = list(enumerate(transforms))
    run(placed, samples, seed=seed, epoch=epoch, first_position=first_position)
    return samples.arrays["x"]


class Given(Draw):
    """Gives words that were chosen by hand, one a call."""

    def __init__(self, words: list[int]) -> None:
        super().__init__(0, 0, 0, 0, 1)
        self._given = list(words)

    def words(self, count: int) -> NDArray[np.uint64]:
        assert count == 1
        return np.array([[self._given.pop(0)]], dtype=np.uint64)


def distinct_images(count: int, *shape: int, dtype: str = "float32") -> NDArray[Any]:
    """Images whose pixels all differ from each other and from 0."""
    return np.arange(1, count * int(np.prod(shape)) + 1).reshape(count, *shape).astype(dtype)


def moved_by_scipy(image: NDArray[Any], dy: int, dx: int, fill: float) -> NDArray[Any]:
    moved: NDArray[Any] = ndimage.shift(image, (0, dy, dx), order=0, mode="constant", cval=fill)
    return moved


SCIPY_MODES = {"nearest": "nearest", "reflect": "reflect", "wrap": "grid-wrap"}


@pytest.mark.parametrize("mode", SCIPY_MODES)
@pytest.mark.parametrize("reach", [1, 5])
def test_shift_shows_beyond_the_edge_what_scipy_shows_in_each_fill_mode(
    mode: str, reach: int
) -> None:
    images = distinct_images(12, 2, 3, 4, dtype="uint8")
    moved = apply([Shift(reach, fill_mode=mode)], images)
    down, right = Shift(reach).offsets(Draw(0, 0, 0, 0, 12))
    for image, result, dy, dx in zip(images, moved, down, right, strict=True):
        expected = ndimage.shift(image, (0, -dy, -dx), order=0, mode=SCIPY_MODES[mode])
        assert np.array_equal(result, expected)


def test_shift_is_the_padded_crop_of_the_residual_networks() -> None:
    images = distinct_images(30, 3, 5, 6)
    moved = apply([Shift(4)], images)
    for image, result in zip(images, moved, strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
        crops = [padded[:, y : y + 5, x : x + 6] for y, x in product(range(9), range(9))]
        assert any(np.array_equal(crop, result) for crop in crops)


def found_shift(
    before: NDArray[Any], after: NDArray[Any], reach: int, fill: float
) -> tuple[int, int]:
    """The one shift within reach that makes `after` of `before`."""
    steps = range(-reach, reach + 1)
    (found,) = [
        (dy, dx)
        for dy, dx in product(steps, steps)
        if np.array_equal(moved_by_scipy(before, dy, dx, fill), after)
    ]
    return found


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
@pytest.mark.parametrize(("reach", "fill"), [(1, 0.0), (2, 9.0)])
def test_shift_moves_each_image_as_scipy_does_by_a_shift_within_reach(
    dtype: str, reach: int, fill: float
) -> None:
    images = distinct_images(8, 2, 3, 4, dtype=dtype)
    moved = apply([Shift(reach, fill)], images, seed=1, epoch=2, first_position=5)
    assert moved.dtype == images.dtype
    found = [found_shift(a, b, reach, fill) for a, b in zip(images, moved, strict=True)]
    assert len(set(found)) > 1


def test_shift_by_the_words_is_that_of_a_hand_computation() -> None:
    image = distinct_images(1, 1, 3, 3)
    # The lowest word gives the first of -1, 0, 1, the highest the last; a word of 2^63 the middle.
    low, middle, high = 0, 2**63, 2**64 - 1
    down_and_right = [[0, 0, 0], [0, 1, 2], [0, 4, 5]]
    up = [[4, 5, 6], [7, 8, 9], [0, 0, 0]]
    for words, expected in ([low, low], down_and_right), ([high, middle], up):
        moved = Shift(1).changed(image, Given(words))
        assert moved[0, 0].tolist() == expected


def test_every_shift_within_reach_is_equally_frequent() -> None:
    image = distinct_images(1, 1, 3, 3)
    moved = apply([Shift(1)], np.repeat(image, 1_800, axis=0), seed=3, epoch=0, first_position=0)
    kinds, counts = np.unique(moved.reshape(1_800, -1), axis=0, return_counts=True)
    expected = {
        tuple(moved_by_scipy(image[0], dy, dx, 0.0).ravel().tolist())
        for dy, dx in product((-1, 0, 1), repeat=2)
    }
    assert {tuple(kind.tolist()) for kind in kinds} == expected
    assert stats.chisquare(counts).pvalue > 1e-3


def test_shift_moves_all_channels_of_an_image_together() -> None:
    image = np.repeat(distinct_images(20, 1, 5, 5), 3, axis=1)
    moved = apply([Shift(2)], image)
    assert np.array_equal(moved[:, 0], moved[:, 1])
    assert np.array_equal(moved[:, 0], moved[:, 2])


def test_shift_by_no_pixels_leaves_the_images_as_they_are() -> None:
    images = distinct_images(5, 1, 4, 4)
    moved = apply([Shift(0)], images)
    assert np.array_equal(moved, images)


def test_shift_may_reach_farther_than_the_image() -> None:
    images = distinct_images(200, 1, 2, 2)
    moved = apply([Shift(4, fill=-1.0)], images)
    assert (moved == -1.0).all(axis=(1, 2, 3)).any()
    assert set(moved.ravel().tolist()) <= {-1.0, *images.ravel().tolist()}


def test_flip_gives_each_image_or_its_mirror_image() -> None:
    images = distinct_images(400, 2, 3, 4)
    flipped = apply([Flip()], images, seed=1, epoch=1, first_position=0)
    mirrored = [
        np.array_equal(after, np.stack([np.fliplr(channel) for channel in before]))
        for before, after in zip(images, flipped, strict=True)
    ]
    same = (flipped == images).all(axis=(1, 2, 3))
    assert np.array_equal(same, ~np.array(mirrored))
    assert flipped.dtype == images.dtype


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_flip_mirrors_with_its_probability(probability: float) -> None:
    images = distinct_images(1, 1, 1, 2).repeat(4_000, axis=0)
    flipped = apply([Flip(probability)], images, seed=2, epoch=0, first_position=0)
    count = int((flipped != images).any(axis=(1, 2, 3)).sum())
    assert stats.binomtest(count, 4_000, probability).pvalue > 1e-3


def test_flip_with_probability_0_or_1_mirrors_none_or_all() -> None:
    images = distinct_images(100, 1, 2, 3)
    for probability, expected in (0.0, images), (1.0, images[..., ::-1]):
        flipped = apply([Flip(probability)], images)
        assert np.array_equal(flipped, expected)


def test_one_sample_is_augmented_differently_at_each_position() -> None:
    images = distinct_images(1, 1, 6, 6).repeat(64, axis=0)
    changed = apply([Shift(2), Flip()], images)
    # 50 outcomes, 64 draws: 36 kinds are expected.
    assert len(np.unique(changed.reshape(64, -1), axis=0)) > 25


@given(
    cuts=st.lists(st.integers(0, 40), max_size=6),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
    first=st.integers(0, 10**9),
)
@settings(deadline=None, max_examples=40)
def test_augmentation_does_not_depend_on_how_positions_are_split_into_batches(
    cuts: list[int], seed: int, epoch: int, first: int
) -> None:
    images = distinct_images(40, 1, 5, 5, dtype="int16")
    whole = apply(PIPELINE, images, seed=seed, epoch=epoch, first_position=first)
    edges = [0, *sorted(cuts), 40]
    parts = [
        apply(PIPELINE, images[a:b], seed=seed, epoch=epoch, first_position=first + a)
        for a, b in pairwise(edges)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


def test_another_epoch_seed_or_position_augments_anew() -> None:
    images = distinct_images(1, 1, 6, 6).repeat(50, axis=0)
    drawn = [
        apply(PIPELINE, images, seed=seed, epoch=epoch, first_position=first)
        for seed, epoch, first in [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 0, 50)]
    ]
    for number, one in enumerate(drawn):
        for other in drawn[number + 1 :]:
            assert (one != other).any(axis=(1, 2, 3)).mean() > 0.8


def test_a_transform_given_twice_draws_twice() -> None:
    images = distinct_images(60, 1, 7, 7)
    once = apply([Flip()], images)
    twice = apply([Flip(), Flip()], images)
    first_flips = (once != images).any(axis=(1, 2, 3))
    both_flips = (twice != images).any(axis=(1, 2, 3))
    # Were the draws the same, every image would be mirrored back.
    assert 10 < both_flips.sum() < 50
    assert not np.array_equal(first_flips, both_flips)


def test_transforms_are_applied_in_the_order_of_the_list() -> None:
    images = distinct_images(2, 1, 1, 3)
    drawn = apply([Shift(1), Flip(1.0)], images)
    by_hand = apply([Shift(1)], images)[..., ::-1]
    assert np.array_equal(drawn, by_hand)


def test_augmentation_leaves_the_given_rows_as_they_are() -> None:
    images = distinct_images(30, 1, 4, 4)
    before = images.copy()
    apply(PIPELINE, images)
    assert np.array_equal(images, before)


def test_no_transforms_change_nothing() -> None:
    images = distinct_images(3, 1, 2, 2)
    assert np.array_equal(apply([], images), images)


def test_vertical_flip_gives_each_image_or_the_same_upside_down() -> None:
    images = distinct_images(400, 2, 3, 4)
    flipped = apply([VerticalFlip()], images, seed=1, epoch=1)
    turned = [
        np.array_equal(after, np.stack([np.flipud(channel) for channel in before]))
        for before, after in zip(images, flipped, strict=True)
    ]
    same = (flipped == images).all(axis=(1, 2, 3))
    assert np.array_equal(same, ~np.array(turned))
    assert stats.binomtest(int(same.sum()), 400, 0.5).pvalue > 1e-3


@dataclass
class Recorder:
    """A transform of the user's own, which keeps the words that it was given."""

    words: list[NDArray[np.uint64]] = field(default_factory=list)

    def __call__(self, samples: Samples, draw: Draw) -> None:  # noqa: ARG002
        self.words.append(draw.words(5))
        self.words.append(draw.words(5))


def test_any_function_of_samples_and_draw_is_a_transform_for_any_column() -> None:
    def doubled(samples: Samples, draw: Draw) -> None:
        samples.arrays["x"] = samples.arrays["x"] * 2 + draw.integers(0, 0)[:, None]

    rows = distinct_images(3, 4)
    assert np.array_equal(apply([doubled], rows), rows * 2)


def test_each_call_of_a_draw_gives_other_words_the_same_for_each_position() -> None:
    whole, part = Recorder(), Recorder()
    apply([whole], distinct_images(6, 4), first_position=9)
    apply([part], distinct_images(2, 4), first_position=12)
    assert whole.words[0].shape == (6, 5)
    assert whole.words[0].dtype == np.uint64
    assert not (whole.words[0] == whole.words[1]).any()
    for all_words, some in zip(whole.words, part.words, strict=True):
        assert np.array_equal(all_words[3:5], some)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_transform_that_changes_the_number_of_samples_is_refused(count: int) -> None:
    def resized(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
        samples.arrays["x"] = np.zeros((count, 4))

    with pytest.raises(ValueError, match=r"transform resized made columns of .* from 3: it must"):
        apply([resized], distinct_images(3, 4))


def test_a_function_runs_on_the_scaled_inputs_inside_after_scaling() -> None:
    recorder = Recorder()
    wrapped = AfterScaling(recorder)
    assert is_after_scaling(wrapped)
    assert not is_after_scaling(recorder)
    apply([wrapped], distinct_images(3, 4))
    assert len(recorder.words) == 2


def test_a_negative_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Shift\(pixels=-1\): pixels must be 0 or more"):
        Shift(-1)


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(probability: float) -> None:
    for flip in (Flip, VerticalFlip):
        rule = r"Flip\(probability=.*\): probability must lie in \[0, 1\]"
        with pytest.raises(ValueError, match=rule):
            flip(probability)


def test_a_fill_mode_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fill_mode must be one of constant, nearest, reflect, w"):
        Shift(1, fill_mode="mirror")


@pytest.mark.parametrize("transform", [Shift(), Flip(), VerticalFlip()])
@pytest.mark.parametrize("shape", [(4,), (8, 8), ()])
def test_rows_that_are_no_images_are_refused(
    transform: Shift | Flip | VerticalFlip, shape: tuple[int, ...]
) -> None:
    name = type(transform).__name__
    with pytest.raises(DataError) as caught:
        transform.changed(np.zeros((2, *shape)), Draw(0, 0, 0, 0, 2))
    assert str(caught.value) == (
        f"{name} works on images (C, H, W), but a row of this column has shape {shape}: "
        f"leave {name} out, or convert the data to images"
    )


@pytest.mark.parametrize("fill", [-1.0, 0.5, 256.0, float("nan")])
def test_a_fill_that_the_images_cannot_hold_is_refused(fill: float) -> None:
    images = np.zeros((1, 1, 2, 2), dtype=np.uint8)
    with pytest.raises(DataError, match=r"does not fit images of uint8: .* from 0 to 255"):
        Shift(1, fill=fill).changed(images, Draw(0, 0, 0, 0, 1))
