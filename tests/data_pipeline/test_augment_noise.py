import numpy as np
import pytest
from scipy import stats

from data_pipeline.augment import Draw, GaussianNoise
from data_pipeline.augment.stream import normals, uniform_at, word_at
from data_pipeline.errors import DataError

SPLITMIX_OF_1234567 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
"""The first words of SplitMix64 from that seed, as published with its reference implementation."""


def draw(count: int) -> Draw:
    return Draw(1, 2, 3, 40, count)


def test_words_are_those_of_splitmix64() -> None:
    seed = np.uint64(1234567)
    assert [int(word_at(seed, index)) for index in range(5)] == SPLITMIX_OF_1234567


def test_uniform_numbers_lie_strictly_between_0_and_1() -> None:
    numbers = [uniform_at(np.uint64(99), index) for index in range(5_000)]
    assert 0 < min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("length", [1, 2, 7])
def test_normal_numbers_are_normal_at_every_place_and_independent(length: int) -> None:
    numbers = normals(draw(6_000).words(1)[:, 0], (length,)).astype(np.float64)
    for column in numbers.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    if length > 1:
        assert np.abs(np.corrcoef(numbers.T) - np.eye(length)).max() < 0.06


def test_normal_numbers_of_one_seed_are_normal_and_not_correlated_with_the_next() -> None:
    numbers = normals(np.array([3], np.uint64), (20_000,))[0].astype(np.float64)
    assert stats.kstest(numbers, "norm").pvalue > 1e-3
    for lag in (1, 2, 3):
        assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < 0.03


@pytest.mark.parametrize("shape", [(3, 5, 4), (9,), ()])
def test_noise_is_added_with_its_deviation(shape: tuple[int, ...]) -> None:
    rows = np.random.default_rng(0).normal(size=(500, *shape)).astype(np.float32)
    noisy = GaussianNoise(0.3).changed(rows, draw(500))
    assert noisy.dtype == np.float32
    added = (noisy.astype(np.float64) - rows).ravel()
    assert stats.kstest(added, stats.norm(0, 0.3).cdf).pvalue > 1e-3


def test_noise_of_deviation_0_changes_nothing() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(GaussianNoise(0).changed(rows, draw(2)), rows)


def test_noise_comes_after_the_scaling_and_only_on_floats() -> None:
    assert GaussianNoise(1).after_scaling
    with pytest.raises(DataError, match=r"GaussianNoise works on float32, but the inputs are i"):
        GaussianNoise(1).changed(np.zeros((2, 3), np.int64), draw(2))
    with pytest.raises(ValueError, match=r"GaussianNoise\(std=-1\): std must be 0 or more"):
        GaussianNoise(-1)
