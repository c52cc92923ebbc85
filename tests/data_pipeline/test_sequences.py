"""Sequences and texts: padded to one length, with how long each is beside them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import DataError, Dataset, Loader, Ragged, write_dataset
from data_pipeline.augment import Draw, GaussianNoise, Samples
from data_pipeline.manifest import Column

LENGTHS = [3, 0, 5, 1, 0, 4, 2]
STEPS = np.random.default_rng(0).normal(3.0, 2.0, (sum(LENGTHS), 2)).astype(np.float32)
ROWS = np.split(STEPS, np.cumsum(LENGTHS)[:-1])
TEXTS = ["abc", "", "größe", "x" * 9, "", "zz", "漢字"]


def dataset_of(rows: list[NDArray[Any]]) -> Dataset:
    series = Ragged.of(rows, "float32", (2,))
    return Dataset.from_arrays({"series": series, "id": np.arange(len(rows))})


def whole(dataset: Dataset, **options: Any) -> dict[str, NDArray[Any]]:
    """All rows in their order, three at a time."""
    loader = Loader(dataset, 3, sampling="stored", **options)
    batches = [{name: t.numpy().copy() for name, t in batch.items()} for batch in loader]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def padded(rows: list[NDArray[Any]], steps: int) -> NDArray[Any]:
    out = np.zeros((len(rows), steps, *rows[0].shape[1:]), rows[0].dtype)
    for number, row in enumerate(rows):
        out[number, : len(row)] = row[:steps]
    return out


def test_sequences_are_padded_with_zeros_to_the_longest_of_the_data_set() -> None:
    found = whole(dataset_of(ROWS), standardize=False)
    assert list(found) == ["series", "series_lengths", "id"]
    assert found["series_lengths"].dtype == np.int64
    assert found["series_lengths"].tolist() == LENGTHS
    assert np.array_equal(found["series"], padded(ROWS, 5))


@pytest.mark.parametrize("steps", [1, 3, 5, 12])
def test_pad_to_pads_further_or_cuts(steps: int) -> None:
    found = whole(dataset_of(ROWS), standardize=False, pad_to={"series": steps})
    assert np.array_equal(found["series"], padded(ROWS, steps))
    assert found["series_lengths"].tolist() == [min(length, steps) for length in LENGTHS]


def unchanged(samples: Samples, draw: Draw) -> None:
    """Keeps the scaling from being done with the padding."""


@pytest.mark.parametrize("transforms", [[], [unchanged]], ids=["at once", "after a transform"])
@pytest.mark.parametrize("steps", [3, 8])
def test_what_stands_behind_a_sequence_is_zero_also_when_it_is_scaled(
    transforms: list[Any], steps: int
) -> None:
    found = whole(dataset_of(ROWS), transforms=transforms, pad_to={"series": steps})
    scaled = [(row - STEPS.mean(axis=0)) / STEPS.std(axis=0) for row in ROWS]
    np.testing.assert_allclose(found["series"], padded(scaled, steps), rtol=1e-4, atol=1e-5)
    for row, length in zip(found["series"], found["series_lengths"].tolist(), strict=True):
        assert not row[length:].any()
        assert row[:length].all()


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    steps=st.integers(1, 8),
    micro_batch=st.sampled_from([None, 1, 2]),
)
@settings(deadline=None, max_examples=60)
def test_scaling_with_the_padding_or_after_a_transform_gives_the_same_bits(
    lengths: list[int], steps: int, micro_batch: int | None
) -> None:
    rng = np.random.default_rng(1)
    dataset = dataset_of([rng.normal(5, 2, (length, 2)).astype(np.float32) for length in lengths])
    if not sum(lengths):
        return  # without a value there is nothing to scale by
    options: dict[str, Any] = {"pad_to": {"series": steps}, "micro_batch": micro_batch}
    one, other = whole(dataset, **options), whole(dataset, transforms=[unchanged], **options)
    assert one["series"].tobytes() == other["series"].tobytes()


def test_texts_come_as_their_bytes_in_utf_8() -> None:
    found = whole(Dataset.from_arrays({"text": TEXTS}))
    assert list(found) == ["text", "text_lengths"]
    assert found["text"].dtype == np.uint8
    assert found["text"].shape == (7, 9)
    lengths = found["text_lengths"].tolist()
    read = [
        row[:length].tobytes().decode() for row, length in zip(found["text"], lengths, strict=True)
    ]
    assert read == TEXTS


def test_rows_that_are_all_empty_have_one_step_of_padding() -> None:
    found = whole(Dataset.from_arrays({"text": ["", "", ""]}))
    assert found["text"].tolist() == [[0], [0], [0]]
    assert found["text_lengths"].tolist() == [0, 0, 0]


def test_sequences_of_many_shards_are_put_together_in_their_order(tmp_path: Path) -> None:
    columns = [
        Column(name="series", kind="sequence", dtype="float32", shape=(2,), max_length=5),
        Column(name="text", kind="text", dtype="uint8", max_length=9),
    ]
    texts = Ragged.of_bytes([text.encode() for text in TEXTS])
    parts: Any = {"train": {"series": Ragged.of(ROWS, "float32", (2,)), "text": texts}}
    write_dataset(tmp_path / "d", "d", columns, parts, rows_per_shard=2)
    dataset = Dataset(tmp_path / "d")
    found = whole(dataset, standardize=False)
    assert np.array_equal(found["series"], padded(ROWS, 5))
    memory = whole(Dataset.from_arrays({"text": TEXTS}))
    assert np.array_equal(found["text"], memory["text"])
    assert found["text_lengths"].tolist() == memory["text_lengths"].tolist()


def test_a_column_that_is_called_as_the_lengths_would_be_is_refused() -> None:
    arrays: dict[str, Any] = {"x": Ragged.of(ROWS, "float32", (2,)), "x_lengths": np.arange(7)}
    with pytest.raises(DataError, match=r"'x_lengths' .* is what the lengths of 'x' are called"):
        whole(Dataset.from_arrays(arrays))


def test_what_stands_behind_a_row_is_zero_after_noise_too() -> None:
    found = whole(dataset_of(ROWS), transforms=[GaussianNoise(1.0)])
    behind = np.arange(5) >= np.array(LENGTHS)[:, None]
    assert not found["series"][behind].any()
    assert found["series"][~behind].all()


@pytest.mark.parametrize("steps", [{"serie": 3}, {"series": 0}, {"series": -3}])
def test_padding_that_cannot_be_is_refused(steps: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"pad_to gives .*; give 1 or more to one of"):
        Loader(dataset_of(ROWS), 3, pad_to=steps)
    with pytest.raises(DataError, match="only sequences and texts are padded"):
        whole(dataset_of(ROWS), pad_to={"id": 3})


def test_sequences_of_16_bits_are_padded_and_scaled() -> None:
    rows = [row.astype(np.float16) for row in ROWS]
    data = Dataset.from_arrays({"series": Ragged.of(rows, "float16", (2,))})
    assert np.array_equal(whole(data, standardize=False)["series"], padded(rows, 5))
    assert whole(data)["series"].dtype == np.float32
