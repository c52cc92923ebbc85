from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import Dataset
from data_pipeline.augment import Draw, Flip, Samples, Transform
from data_pipeline.heads import Span
from data_pipeline.order import BLOCK, ShuffledOrder
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe
from data_pipeline.sampling import Kind
from tests.prefetched import (
    ARRAYS,
    DATASET,
    NUM_ROWS,
    RECIPE,
    TRANSFORMS,
    Copy,
    epoch_of_spans,
    load,
)


def rows_of(batches: list[Copy]) -> list[int]:
    return list(chain.from_iterable(batch.rows for batch in batches))


def computed(span: Span) -> dict[str, NDArray[Any]]:
    """What RECIPE gives, in plain NumPy."""
    rows = ShuffledOrder(NUM_ROWS, 7, span.epoch).rows(0, NUM_ROWS)[span.start : span.stop]
    images = ARRAYS["image"][rows]
    for place, transform in enumerate(TRANSFORMS):
        draw = Draw(7, span.epoch, place, span.start, len(rows))
        images = transform.changed(images, draw)
    axes = (0, 2, 3)
    mean = ARRAYS["image"].mean(axis=axes, keepdims=True)
    std = ARRAYS["image"].std(axis=axes, keepdims=True)
    return {"image": (images - mean) / std, "label": ARRAYS["label"][rows]}


def test_a_batch_is_gathered_augmented_and_standardised() -> None:
    spans = epoch_of_spans(0, 16) + epoch_of_spans(1, 9)
    batches = load(RECIPE, spans)
    assert [batch.span for batch in batches] == spans
    for batch in batches:
        expected = computed(batch.span)
        assert list(batch.columns) == ["image", "label"]
        assert batch.columns["image"].dtype == np.float32
        np.testing.assert_allclose(batch.columns["image"], expected["image"], rtol=1e-5, atol=1e-6)
        assert np.array_equal(batch.columns["label"], expected["label"])
        assert np.array_equal(ARRAYS["label"][batch.rows], expected["label"])


def test_without_a_recipe_for_more_the_columns_are_as_stored() -> None:
    recipe = Recipe(columns=("weight", "image"))
    batches = load(recipe, epoch_of_spans(3, 11))
    for name in ("weight", "image"):
        joined = np.concatenate([batch.columns[name] for batch in batches])
        assert joined.dtype == ARRAYS[name].dtype
        assert np.array_equal(joined, ARRAYS[name])


@given(cuts=st.lists(st.integers(0, NUM_ROWS), max_size=8), epoch=st.integers(0, 1_000))
@settings(deadline=None, max_examples=40)
def test_the_bits_of_an_epoch_do_not_depend_on_its_cut_into_spans(
    cuts: list[int], epoch: int
) -> None:
    edges = [0, *sorted(cuts), NUM_ROWS]
    spans = [Span(epoch, a, b) for a, b in pairwise(edges)]
    (whole,) = load(RECIPE, [Span(epoch, 0, NUM_ROWS)])
    parts = load(RECIPE, spans)
    assert rows_of(parts) == whole.rows
    for name in RECIPE.columns:
        joined = b"".join(part.columns[name].tobytes() for part in parts)
        assert joined == whole.columns[name].tobytes()


def test_each_epoch_holds_every_row_once_in_another_order() -> None:
    first, second = (rows_of(load(RECIPE, epoch_of_spans(epoch, 6))) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(NUM_ROWS))
    assert first != second


def test_spans_may_jump_to_and_fro_within_and_between_epochs() -> None:
    num_rows = 2 * BLOCK + 100
    dataset = Dataset.from_arrays({"x": np.arange(num_rows)})
    generator = np.random.default_rng(5)
    starts = generator.integers(0, num_rows - 50, 60).tolist()
    epochs = generator.integers(-1, 2, 60).tolist()
    spans = [Span(epoch, start, start + 50) for epoch, start in zip(epochs, starts, strict=True)]
    orders = {epoch: ShuffledOrder(num_rows, 3, epoch).rows(0, num_rows) for epoch in (-1, 0, 1)}
    recipe = Recipe(columns=("x",), seed=3, sampling="shuffled")
    with Prefetcher(dataset, recipe, spans, max_rows=50) as batches:
        for batch in batches:
            span = batch.span
            expected = orders[span.epoch][span.start : span.stop].tolist()
            assert batch.columns["x"].tolist() == expected


@pytest.mark.parametrize("epoch", [-1, 0, 2**40])
def test_any_whole_number_may_be_the_first_epoch(epoch: int) -> None:
    (batch,) = load(RECIPE, [Span(epoch, 3, 20)])
    assert batch.rows == ShuffledOrder(NUM_ROWS, 7, epoch).rows(3, 20).tolist()


@pytest.mark.parametrize("sampling", ["shuffled", "stored", "bootstrap"])
@pytest.mark.parametrize("span", [Span(0, 35, 41), Span(0, -1, 3), Span(0, 5, 3), Span(0, 41, 41)])
@pytest.mark.parametrize("before", [[], [Span(0, 0, 5)]])
def test_a_span_outside_of_the_epoch_is_refused(
    sampling: Kind, span: Span, before: list[Span]
) -> None:
    recipe = Recipe(columns=("label",), sampling=sampling)
    with Prefetcher(DATASET, recipe, [*before, span], max_rows=10) as batches:
        for _ in before:
            next(batches)
        with pytest.raises(IndexError) as caught:
            next(batches)
    assert str(caught.value) == (
        f"positions [{span.start}, {span.stop}) lie outside of [0, {NUM_ROWS})"
    )


def test_a_span_without_positions_is_a_batch_without_samples() -> None:
    empty, full = load(RECIPE, [Span(0, 12, 12), Span(0, 12, 14)])
    assert empty.rows == []
    assert empty.columns["image"].shape == (0, 2, 5, 4)
    assert empty.columns["label"].shape == (0,)
    assert full.columns["image"].shape == (2, 2, 5, 4)


def test_columns_are_tensors_of_the_stored_dtype() -> None:
    with Prefetcher(DATASET, RECIPE, [Span(0, 0, 3)], max_rows=8) as batches:
        (columns,) = [batch.columns for batch in batches]
    assert {name: tensor.dtype for name, tensor in columns.items()} == {
        "image": torch.float32,
        "label": torch.int64,
    }
    assert all(tensor.is_contiguous() for tensor in columns.values())


def adds_a_column(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
    images = samples.arrays["image"]
    samples.arrays["mean"] = images.mean(axis=(1, 2, 3))
    samples.arrays["image"] = images[:, :1].astype(np.float16)


def own(transform: Transform, **more: Any) -> Recipe:
    return Recipe(columns=("image", "row"), inputs="image", transforms=(transform,), **more)


def test_a_function_of_ones_own_may_add_a_column_and_change_shape_and_dtype() -> None:
    batches = load(own(adds_a_column, micro_batch=3), epoch_of_spans(0, 16))
    images = np.concatenate([batch.columns["image"] for batch in batches])
    means = np.concatenate([batch.columns["mean"] for batch in batches])
    assert images.dtype == np.float16
    assert np.array_equal(images, ARRAYS["image"][:, :1])
    assert means.dtype == np.float64
    assert np.array_equal(means, ARRAYS["image"].mean(axis=(1, 2, 3)))


def loses_one(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
    for name in samples.arrays:
        samples.arrays[name] = samples.arrays[name][1:]


def loses_one_of_a_column(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
    samples.arrays["row"] = samples.arrays["row"][1:]


@pytest.mark.parametrize("transform", [loses_one, loses_one_of_a_column])
def test_a_function_that_loses_samples_is_refused_by_its_name(transform: Any) -> None:
    with pytest.raises(ValueError, match=rf"the transform {transform.__name__} made columns of"):
        load(own(transform), [Span(0, 0, 8)])


def cut_at_the_end(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
    if 39 in samples.arrays["row"]:
        samples.arrays["image"] = samples.arrays["image"][..., :2]


def other_dtype_at_the_end(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
    if 39 in samples.arrays["row"]:
        samples.arrays["image"] = samples.arrays["image"].astype(np.int32)


def more_columns_at_the_end(samples: Samples, draw: Draw) -> None:  # noqa: ARG001
    if 39 in samples.arrays["row"]:
        samples.arrays["more"] = samples.arrays["row"]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (cut_at_the_end, r"uint8 of shape \(4, 2, 5, 2\) of column 'image', and of the first"),
        (other_dtype_at_the_end, r"made int32 of shape .* and of the first samples uint8"),
        (more_columns_at_the_end, r"gave the columns \['image', 'more', 'row'\], and of the first"),
    ],
)
def test_a_function_that_makes_the_last_batch_another_is_refused(
    transform: Transform, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(own(transform), epoch_of_spans(0, 4))


def test_transforms_of_a_column_that_is_not_asked_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the column they apply to \('image'\) is not among"):
        Recipe(columns=("row",), inputs="image", transforms=(Flip(),))
    with pytest.raises(ValueError, match="micro_batch is 0; it must be 1 or more"):
        Recipe(columns=("row",), micro_batch=0)
