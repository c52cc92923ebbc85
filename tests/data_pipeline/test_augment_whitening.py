from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipeline.augment import Draw, Samples, SamplewiseStandardize, ZCAWhitening
from data_pipeline.augment.whitening import zca_matrix
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged
from data_pipeline.standardize import standardization
from distrain.describe import describe

NOTHING = Draw(0, 0, 0, 0, 0)


def correlated(count: int, *shape: int) -> NDArray[np.float32]:
    """Rows whose features have means, deviations and correlations of their own."""
    rng = np.random.default_rng(4)
    size = int(np.prod(shape))
    mixing = rng.normal(size=(size, size)) / np.sqrt(size)
    rows = rng.normal(size=(count, size)) @ mixing + rng.normal(size=size) * 3
    reshaped: NDArray[np.float32] = rows.reshape(count, *shape).astype(np.float32)
    return reshaped


def keras_components(rows: NDArray[Any], epsilon: float) -> NDArray[np.float64]:
    """Keras' `fit` with zca_whitening, of centred rows."""
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    u, s, _ = np.linalg.svd(flat.T @ flat / len(flat))
    components: NDArray[np.float64] = u @ np.diag(1.0 / np.sqrt(s + epsilon)) @ u.T
    return components


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (6, 2), ()])
def test_samplewise_standardisation_is_keras_formula(shape: tuple[int, ...]) -> None:
    rows = correlated(9, *shape, 1).reshape(9, *shape) * 5
    each = rows.reshape(9, -1).astype(np.float64)
    mean, std = each.mean(axis=1, keepdims=True), each.std(axis=1, keepdims=True)
    centred = SamplewiseStandardize(std=False).changed(rows, NOTHING)
    np.testing.assert_allclose(centred.reshape(9, -1), each - mean, rtol=1e-5, atol=1e-5)
    both = SamplewiseStandardize().changed(rows, NOTHING)
    assert both.dtype == np.float32
    assert both.shape == rows.shape
    expected = (each - mean) / (std + 1e-6)
    np.testing.assert_allclose(both.reshape(9, -1), expected, rtol=1e-5, atol=1e-5)


def test_a_sample_of_equal_values_becomes_zeros() -> None:
    rows = np.full((2, 3, 4, 4), 7.25, np.float32)
    assert not SamplewiseStandardize().changed(rows, NOTHING).any()


@pytest.mark.parametrize("step", [(), (3,), (2, 2)])
def test_a_padded_sequence_is_standardised_by_its_own_steps(step: tuple[int, ...]) -> None:
    lengths = np.array([1, 4, 6, 0])
    rows = np.random.default_rng(0).normal(5, 3, (4, 6, *step)).astype(np.float32)
    rows[np.arange(6) >= lengths[:, None]] = 0
    column = Column(name="x", kind="sequence", dtype="float32", shape=step)
    samples = Samples({"x": rows, "x_lengths": lengths}, {"x": column}, "x")
    SamplewiseStandardize()(samples, NOTHING)
    for row, made, length in zip(rows, samples.arrays["x"], lengths, strict=True):
        assert not made[length:].any()
        if length:
            alone = SamplewiseStandardize().changed(row[None, :length], NOTHING)[0]
            np.testing.assert_array_equal(made[:length], alone)


@pytest.mark.parametrize("shape", [(2, 4, 5), (7,)])
def test_zca_is_keras_whitening_of_centred_rows(shape: tuple[int, ...]) -> None:
    rows = correlated(1_500, *shape)
    fitted = ZCAWhitening(1e-2).fitted(Dataset.from_arrays({"x": rows}), "x")
    whitened = fitted.changed(rows, NOTHING)
    assert whitened.dtype == np.float32
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    expected = centred.reshape(1_500, -1) @ keras_components(centred, 1e-2)
    np.testing.assert_allclose(whitened.reshape(1_500, -1), expected, rtol=1e-3, atol=1e-4)


def test_whitened_features_have_mean_0_variance_1_and_no_correlation() -> None:
    rows = correlated(3_000, 1, 4, 4)
    whitened = ZCAWhitening().fitted(Dataset.from_arrays({"x": rows}), "x").changed(rows, NOTHING)
    flat = whitened.reshape(3_000, -1).astype(np.float64)
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(flat.T, bias=True), np.eye(16), atol=5e-3)


def test_the_matrix_is_symmetric_and_that_of_the_singular_values() -> None:
    rows = correlated(200, 12)
    centred = rows - rows.mean(axis=0, dtype=np.float64)
    matrix = zca_matrix(centred.T @ centred / 200, 1e-3)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-10)
    np.testing.assert_allclose(matrix, keras_components(centred, 1e-3), rtol=1e-7)


def test_a_feature_that_never_varies_stays_finite() -> None:
    rows = correlated(100, 5)
    rows[:, 2] = 3.0
    fitted = ZCAWhitening().fitted(Dataset.from_arrays({"x": rows}), "x")
    assert np.isfinite(fitted.changed(rows, NOTHING)).all()


def test_fitting_sees_the_rows_as_they_are_standardised_in_training() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1_200, 3, 3, 3)).astype(np.uint8)
    dataset = Dataset.from_arrays({"x": pixels})
    scaling = standardization(dataset, "x", scaled=True)
    assert scaling is not None
    scaled = np.empty(pixels.shape, np.float32)
    scaling.apply(pixels, scaled)
    fitted = ZCAWhitening(0.1).fitted(dataset, "x", scaling)
    directly = ZCAWhitening(0.1).fitted(Dataset.from_arrays({"x": scaled}), "x")
    assert fitted == directly
    assert fitted.mean is not None
    np.testing.assert_allclose(fitted.mean, scaled.mean(axis=0).ravel(), atol=1e-6)


def test_fitting_twice_gives_the_same_digest_and_other_data_another() -> None:
    rows = correlated(300, 8)
    whitenings = [
        ZCAWhitening().fitted(Dataset.from_arrays({"x": some}), "x")
        for some in (rows, rows, rows[:-1])
    ]
    one, same, other = (describe(whitening) for whitening in whitenings)
    assert one == same != other
    assert len(whitenings[0].digest) == 64
    assert describe(ZCAWhitening()) != one


def test_what_is_fitted_already_is_fitted_again_to_other_data_alone() -> None:
    rows = correlated(300, 8)
    dataset = Dataset.from_arrays({"x": rows, "z": rows + 1})
    scaling = standardization(dataset, "x", scaled=True)
    assert scaling is not None
    fitted = ZCAWhitening(0.1).fitted(dataset, "x", scaling)
    assert fitted.fitted(Dataset.from_arrays({"x": rows, "z": rows + 1}), "x", scaling) is fitted
    moved = replace(scaling, offset=scaling.offset + 1)
    larger = replace(scaling, scale=scaling.scale * 2)
    others = [
        fitted.fitted(dataset, "z", scaling),
        fitted.fitted(dataset, "x", moved),
        fitted.fitted(dataset, "x", larger),
        fitted.fitted(dataset, "x"),
        fitted.fitted(Dataset.from_arrays({"x": rows[:-1]}), "x", scaling),
    ]
    assert len({whitening.digest for whitening in (fitted, *others)}) == 6
    assert all(whitening.epsilon == 0.1 for whitening in others)


def test_each_sample_is_whitened_with_the_same_bits_in_any_company() -> None:
    rows = correlated(70, 3, 7, 9)
    fitted = ZCAWhitening(0.1).fitted(Dataset.from_arrays({"x": rows}), "x")
    whole = fitted.changed(rows, NOTHING)
    for first, last in ((0, 1), (1, 4), (4, 37), (37, 70)):
        assert np.array_equal(fitted.changed(rows[first:last], NOTHING), whole[first:last])


def test_zca_that_was_not_fitted_or_to_other_inputs_is_refused() -> None:
    rows = correlated(5, 4)
    with pytest.raises(DataError, match=r"Trainer and Loader fit it .*, standardization\)"):
        ZCAWhitening().changed(rows, NOTHING)
    fitted = ZCAWhitening().fitted(Dataset.from_arrays({"x": rows}), "x")
    with pytest.raises(DataError, match=r"was fitted to 4 values a sample, but these have 6"):
        fitted.changed(correlated(5, 6), NOTHING)


def test_columns_too_large_or_of_no_fixed_size_are_refused() -> None:
    large = Dataset.from_arrays({"x": np.zeros((2, 3, 64, 64), np.uint8)})
    with pytest.raises(DataError, match=r"at most 4,096 values, but column 'x' is a tensor of"):
        ZCAWhitening().fitted(large, "x")
    rows = Ragged(np.array([0, 2, 3]), np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match=r"column 'x' is a sequence of shape"):
        ZCAWhitening().fitted(Dataset.from_arrays({"x": rows}), "x")


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_an_epsilon_that_is_not_above_0_is_refused(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"ZCAWhitening\(epsilon=.*\): epsilon must be above 0"):
        ZCAWhitening(epsilon)
