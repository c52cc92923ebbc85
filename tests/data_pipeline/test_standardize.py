import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.preprocessing import StandardScaler

from data_pipeline import DataError, Dataset, Ragged, write_dataset
from data_pipeline.manifest import Column
from data_pipeline.standardize import standardization


def standardized(
    dataset: Dataset, rows: NDArray[Any], *, scaled: bool = True
) -> NDArray[np.float32]:
    """Rows of the column "x" by the statistics of the data set."""
    found = standardization(dataset, "x", scaled=scaled)
    assert found is not None
    out = np.full(rows.shape, np.nan, dtype=np.float32)
    found.apply(rows, out)
    return out


@pytest.mark.parametrize("shape", [(), (6,), (5, 4), (3, 8, 8)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_training_rows_get_mean_0_and_std_1_in_each_channel_or_feature(
    shape: tuple[int, ...], dtype: str
) -> None:
    generator = np.random.default_rng(1)
    spread = generator.uniform(5, 40, shape[:1] + (1,) * len(shape[1:])) if shape else 20.0
    rows = (128 + generator.normal(size=(300, *shape)) * spread).clip(0, 255).astype(dtype)
    out = standardized(Dataset.from_arrays({"x": rows}), rows).astype(np.float64)
    axes = {0: (0,), 1: (0,), 2: (0, 1), 3: (0, 2, 3)}[len(shape)]
    assert np.abs(out.mean(axis=axes)).max() < 1e-6
    assert np.abs(out.std(axis=axes) - 1).max() < 1e-6


@pytest.mark.parametrize("load", [load_breast_cancer, load_wine])
def test_features_are_scaled_as_scikit_learns_standard_scaler_does(load: Any) -> None:
    features = load().data.astype(np.float32)
    expected = StandardScaler().fit_transform(features.astype(np.float64))
    out = standardized(Dataset.from_arrays({"x": features}), features)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("dtype", "value"), [("float32", 0.1), ("float64", 0.1), ("uint8", 7)])
def test_a_feature_that_never_varies_is_centred_as_scikit_learn_does(
    tmp_path: Path, dtype: str, value: float
) -> None:
    rows = np.stack([np.full(1_000, value), np.arange(1_000) % 200], axis=1).astype(dtype)
    column = Column(name="x", kind="tensor", dtype=dtype, shape=(2,))
    write_dataset(tmp_path / "d", "d", [column], {"train": {"x": rows}})
    out = standardized(Dataset(tmp_path / "d"), rows)
    expected = StandardScaler().fit_transform(rows.astype(np.float64))
    assert np.abs(expected[:, 0]).max() < 1e-12
    assert np.abs(out[:, 0]).max() < 1e-7
    np.testing.assert_allclose(out[:, 1], expected[:, 1], rtol=1e-5, atol=1e-6)


def test_other_parts_are_scaled_by_the_training_part(tmp_path: Path) -> None:
    column = Column(name="x", kind="number", dtype="float32")
    train, validation = np.array([1, 3], np.float32), np.array([5, 2], np.float32)
    write_dataset(
        tmp_path / "d", "d", [column], {"validation": {"x": validation}, "train": {"x": train}}
    )
    dataset = Dataset(tmp_path / "d", "validation")
    assert standardized(dataset, validation).tolist() == [3.0, 0.0]


def test_bytes_that_are_not_scaled_become_float32_of_the_same_value() -> None:
    rows = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    out = standardized(Dataset.from_arrays({"x": rows}), rows, scaled=False)
    assert out.dtype == np.float32
    assert out.tolist() == rows.tolist()


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "int8", "uint16"])
@pytest.mark.parametrize("scaled", [True, False])
def test_tokens_are_left_alone(dtype: str, scaled: bool) -> None:
    dataset = Dataset.from_arrays({"x": np.ones((4, 3), dtype=dtype)})
    assert standardization(dataset, "x", scaled=scaled) is None


def test_labels_and_floats_that_are_not_scaled_are_left_alone() -> None:
    dataset = Dataset.from_arrays(
        {"label": np.array([0, 1]), "x": np.ones(2)}, classes={"label": "ab"}
    )
    assert standardization(dataset, "label", scaled=True) is None
    assert standardization(dataset, "x", scaled=False) is None


@given(
    cuts=st.lists(st.integers(0, 33), max_size=5),
    dtype=st.sampled_from(["uint8", "float32"]),
    shape=st.sampled_from([(), (7,), (3, 5), (3, 3, 5)]),
)
@settings(deadline=None, max_examples=80)
def test_the_bits_of_a_row_do_not_depend_on_the_batch_it_is_in(
    cuts: list[int], dtype: str, shape: tuple[int, ...]
) -> None:
    rows = np.random.default_rng(2).uniform(0, 255, (33, *shape)).astype(dtype)
    dataset = Dataset.from_arrays({"x": rows})
    whole = standardized(dataset, rows)
    parts = [standardized(dataset, rows[a:b]) for a, b in pairwise([0, *sorted(cuts), 33])]
    assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_an_unknown_column_is_refused() -> None:
    dataset = Dataset.from_arrays({"x": np.ones(2)})
    with pytest.raises(DataError, match=r"arrays has no column 'y'; it has \['x'\]"):
        standardization(dataset, "y", scaled=True)


def test_texts_and_sequences_of_bytes_are_left_alone() -> None:
    bytes_in_rows = Ragged.of_bytes([b"ab", b"cde"])
    dataset = Dataset.from_arrays({"text": ["ab", "cde"], "steps": bytes_in_rows})
    for name in ("text", "steps"):
        assert standardization(dataset, name, scaled=True) is None
        assert standardization(dataset, name, scaled=False) is None


def test_encoded_pictures_get_mean_0_and_std_1_in_each_channel(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).normal([60, 120, 180], [10, 20, 30], (20, 8, 9, 3))
    pixels = pixels.clip(0, 255).astype(np.uint8)
    encoded = []
    for image in pixels:
        written = io.BytesIO()
        Image.fromarray(image).save(written, "PNG")
        encoded.append(written.getvalue())
    column = Column(name="x", kind="image", dtype="uint8", shape=(3,))
    parts: Any = {"train": {"x": Ragged.of_bytes(encoded)}}
    write_dataset(tmp_path / "d", "d", [column], parts)
    out = standardized(Dataset(tmp_path / "d"), pixels.transpose(0, 3, 1, 2)).astype(np.float64)
    assert np.abs(out.mean(axis=(0, 2, 3))).max() < 1e-6
    assert np.abs(out.std(axis=(0, 2, 3)) - 1).max() < 1e-6


def test_a_data_set_without_these_statistics_says_what_to_do() -> None:
    dataset = Dataset.from_arrays({"x": np.ones((3, 2))})
    dataset.statistics = {}
    with pytest.raises(DataError, match=r"lacks the mean and .* of column 'x', .* set standardize"):
        standardization(dataset, "x", scaled=True)
