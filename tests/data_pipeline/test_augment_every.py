"""What holds for every transform that there is."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import data_pipeline.augment as package
from data_pipeline.augment import (
    TRANSFORMS,
    Brightness,
    CenterCrop,
    ChannelShift,
    CutMix,
    Cutout,
    Flip,
    GaussianNoise,
    Geometry,
    LabelNoise,
    LabelSmoothing,
    Mixup,
    RandomResizedCrop,
    Rescale,
    Resize,
    Rotation,
    Samples,
    SamplewiseStandardize,
    Scaling,
    Shear,
    Shift,
    TargetNoise,
    TimeShift,
    Transform,
    Translate,
    VerticalFlip,
    ZCAWhitening,
    Zoom,
)
from data_pipeline.augment.transform import is_after_scaling, run
from data_pipeline.dataset import Dataset
from data_pipeline.manifest import Column
from distrain.describe import describe

COUNT = 24
COLUMNS = {
    "image": Column(name="image", kind="tensor", dtype="uint8", shape=(3, 6, 9)),
    "series": Column(name="series", kind="sequence", dtype="float32", shape=(2,)),
    "label": Column(name="label", kind="label", dtype="int64", classes=("a", "b", "c", "d")),
    "number": Column(name="number", kind="number", dtype="float32"),
}
Arrays = dict[str, NDArray[Any]]


def whitening(channels: int) -> ZCAWhitening:
    rows = np.random.default_rng(1).normal(size=(90, channels, 6, 9)).astype(np.float32)
    return ZCAWhitening(0.1).fitted(Dataset.from_arrays({"x": rows}), "x")


WHITENING = {channels: whitening(channels) for channels in (1, 3)}


@dataclass(frozen=True)
class Case:
    """A transform, and what it is tried on."""

    transform: Any
    inputs: str = "image"
    target: str = "label"
    random: bool = True
    by_sample: bool = True

    @property
    def name(self) -> str:
        return type(self.transform).__name__


CASES = [
    Case(Resize(4, 5), random=False),
    Case(CenterCrop(4, 5), random=False),
    Case(RandomResizedCrop(4, 5)),
    Case(Shift(3)),
    Case(Shift(3, fill_mode="wrap")),
    Case(Flip()),
    Case(VerticalFlip()),
    Case(Rotation(30)),
    Case(Translate(0.3, 0.3)),
    Case(Shear(30)),
    Case(Zoom(0.5, 1.5)),
    Case(Geometry(20, 0.2, 0.2, 20, (0.5, 1.5), "reflect")),
    Case(ChannelShift(50)),
    Case(Brightness(0.2, 1.8)),
    Case(Rescale(0.1, 3), random=False),
    Case(SamplewiseStandardize(), random=False),
    Case(ZCAWhitening(), random=False),
    Case(Cutout(3, 3)),
    Case(Mixup(1.0), by_sample=False),
    Case(CutMix(), by_sample=False),
    Case(GaussianNoise(0.5)),
    Case(TimeShift(3), inputs="series"),
    Case(TimeShift(3, "zeros"), inputs="series"),
    Case(Scaling(0.5, 1.5), inputs="series"),
    Case(LabelSmoothing(0.1), random=False),
    Case(LabelNoise(0.5)),
    Case(TargetNoise(1.0), target="number"),
]
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def arrays_for(case: Case, channels: int = 3) -> Arrays:
    rng = np.random.default_rng(8)
    image: NDArray[Any] = rng.integers(0, 256, (COUNT, channels, 6, 9)).astype(np.uint8)
    if is_after_scaling(case.transform):
        image = image.astype(np.float32) / 64 - 2
    arrays: Arrays = {
        "image": image,
        "series": rng.normal(size=(COUNT, 7, 2)).astype(np.float32),
        "series_lengths": rng.integers(0, 8, COUNT),
        "label": rng.integers(0, 4, COUNT),
        "number": rng.normal(size=COUNT).astype(np.float32),
    }
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def transformed(
    case: Case, arrays: Arrays, *, seed: int = 5, epoch: int = 2, first_position: int = 100
) -> Arrays:
    transform = case.transform
    if isinstance(transform, ZCAWhitening):
        transform = WHITENING[arrays["image"].shape[1]]
    samples = Samples(dict(arrays), COLUMNS, case.inputs, case.target)
    run([(0, transform)], samples, seed=seed, epoch=epoch, first_position=first_position)
    return samples.arrays


def part(arrays: Arrays, first: int, last: int) -> Arrays:
    return {name: array[first:last] for name, array in arrays.items()}


def same(one: Arrays, other: Arrays) -> bool:
    return all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@every
def test_a_sample_has_the_same_bits_however_the_positions_are_split(case: Case) -> None:
    if not case.by_sample:
        assert case.name in ("Mixup", "CutMix")  # their partners are those of the micro-batch
        return
    arrays = arrays_for(case)
    whole = transformed(case, arrays)
    for i in range(COUNT):
        alone = transformed(case, part(arrays, i, i + 1), first_position=100 + i)
        assert same(alone, part(whole, i, i + 1))


@given(
    cuts=st.lists(st.integers(0, COUNT), max_size=4),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 10**6),
    first=st.integers(0, 10**9),
)
@settings(deadline=None, max_examples=40)
def test_for_any_seed_epoch_and_cuts_a_sample_has_the_same_bits(
    cuts: list[int], seed: int, epoch: int, first: int
) -> None:
    edges = [0, *sorted(cuts), COUNT]
    for case in CASES:
        if not case.by_sample:
            continue
        arrays = arrays_for(case)
        whole = transformed(case, arrays, seed=seed, epoch=epoch, first_position=first)
        for a, b in pairwise(edges):
            some = transformed(
                case, part(arrays, a, b), seed=seed, epoch=epoch, first_position=first + a
            )
            assert same(some, part(whole, a, b)), case


@every
def test_another_seed_epoch_or_position_changes_anew_and_the_same_ones_the_same(
    case: Case,
) -> None:
    arrays = arrays_for(case)
    once = transformed(case, arrays)
    assert same(once, transformed(case, arrays))
    for other in ({"seed": 6}, {"epoch": 3}, {"first_position": 124}):
        assert same(once, transformed(case, arrays, **other)) != case.random


@every
def test_a_transform_changes_something_and_leaves_what_it_was_given(case: Case) -> None:
    arrays = arrays_for(case)
    before = {name: array.copy() for name, array in arrays.items()}
    after = transformed(case, arrays)
    assert same(arrays, before)
    assert not same(after, before)
    for name, array in after.items():
        if name != case.target:
            assert array.dtype == arrays[name].dtype


@every
def test_no_samples_stay_none_with_the_shape_of_some(case: Case) -> None:
    arrays = arrays_for(case)
    some, none = transformed(case, arrays), transformed(case, part(arrays, 0, 0))
    for name, array in none.items():
        assert array.shape == (0, *some[name].shape[1:])
        assert array.dtype == some[name].dtype


@every
def test_images_of_one_channel_are_changed_too(case: Case) -> None:
    arrays = arrays_for(case, channels=1)
    after = transformed(case, arrays)
    assert after["image"].shape[1] == 1
    assert not same(after, arrays)


@every
def test_many_threads_give_the_bits_of_one(case: Case) -> None:
    arrays = arrays_for(case)
    expected = transformed(case, arrays)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: transformed(case, arrays), range(8)))
    assert all(same(result, expected) for result in results)


def test_every_named_transform_is_tried_here_and_exported() -> None:
    assert {type(case.transform) for case in CASES} == set(TRANSFORMS.values())
    for name, made in TRANSFORMS.items():
        assert made.__name__ in package.__all__
        assert made.__name__.lower() == name.replace("_", "")
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)


def test_every_transform_is_described_by_its_arguments_alone() -> None:
    texts = [describe(case.transform) for case in CASES]
    assert len(set(texts)) == len(CASES)
    assert not any("0x" in text or "ndarray" in text for text in texts)
    assert describe(Shift(2)) != describe(Shift(3))


def test_what_adds_mixes_or_blanks_comes_after_the_scaling_and_nothing_else() -> None:
    late = {name for name, made in TRANSFORMS.items() if getattr(made, "after_scaling", False)}
    by_values = {"rescale", "samplewise_standardize", "zca_whitening", "gaussian_noise", "scaling"}
    assert late == by_values | {"cutout", "mixup", "cutmix"}


def test_the_list_of_a_job_is_run_in_its_order() -> None:
    arrays = arrays_for(CASES[0])
    listed: list[tuple[int, Transform]] = [(0, Rotation(20)), (1, Flip(1.0))]
    both = Samples(dict(arrays), COLUMNS, "image", "label")
    run(listed, both, seed=5, epoch=2, first_position=100)
    rotated = transformed(Case(Rotation(20)), arrays)
    assert np.array_equal(both.arrays["image"], rotated["image"][..., ::-1])
