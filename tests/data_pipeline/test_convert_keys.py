"""Keys of contents: the same whatever the type, and never in two parts."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import Dataset, Ragged, Reading, convert
from data_pipeline.conversion.content import content_keys
from data_pipeline.conversion.parts import by_class
from data_pipeline.manifest import DTYPES, Column
from data_pipeline.shards import Values

# Small ones, so that every type holds many of them.
VALUES = st.sampled_from([0.0, -0.0, 1.0, 2.0, 100.0, 127.0, 255.0, 256.0, -1.0, 0.5, np.nan])


def keys(column: Column, values: Values, count: int) -> list[tuple[int, ...]]:
    return [tuple(key) for key in content_keys([column], {column.name: values}, count).tolist()]


def holds(dtype: str, values: NDArray[Any]) -> bool:
    with np.errstate(invalid="ignore"):
        return np.array_equal(values.astype(dtype).astype(np.float64), values, equal_nan=True)


def plain(values: NDArray[Any]) -> tuple[Any, ...]:
    """A row by its values: one NaN, and no -0."""
    return tuple("nan" if value != value else value + 0.0 for value in values.reshape(-1).tolist())  # noqa: PLR0124


@given(st.lists(st.lists(VALUES, max_size=4), min_size=1, max_size=6))
@settings(deadline=None, max_examples=200)
def test_sequences_have_the_keys_of_their_values_whatever_their_type(
    rows: list[list[float]],
) -> None:
    arrays = [np.array(row, np.float64) for row in rows]
    expected = None
    for dtype in DTYPES:
        if not all(holds(dtype, array) for array in arrays):
            continue
        column = Column(name="s", kind="sequence", dtype=dtype)
        found = keys(column, Ragged.of([a.astype(dtype) for a in arrays], dtype, ()), len(rows))
        expected = expected or found
        assert found == expected
    assert expected is not None
    assert len(set(expected)) == len({plain(array) for array in arrays})


@given(
    hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=4, max_side=3), elements=VALUES)
)
@settings(deadline=None, max_examples=200)
def test_tensors_have_the_keys_of_their_values_whatever_their_type(rows: NDArray[Any]) -> None:
    expected = None
    for dtype in DTYPES:
        if not holds(dtype, rows):
            continue
        column = Column(name="t", kind="tensor", dtype=dtype, shape=rows.shape[1:])
        found = keys(column, rows.astype(dtype), len(rows))
        expected = expected or found
        assert found == expected
        for number, row in enumerate(rows):  # alone, and with others
            assert keys(column, row[None].astype(dtype), 1) == [found[number]]
    assert expected is not None
    assert len(set(expected)) == len({plain(row) for row in rows})


@given(
    hnp.arrays(np.uint8, (4, 1, 2, 3), elements=st.integers(0, 2)),
    hnp.arrays(np.uint8, (4, 3, 2, 3), elements=st.integers(0, 2)),
    st.sampled_from(["uint8", "int32", "float32"]),
)
@settings(deadline=None, max_examples=100)
def test_a_grey_picture_has_the_key_of_its_three_channels(
    grey: NDArray[Any], colour: NDArray[Any], dtype: str
) -> None:
    one = Column(name="p", kind="tensor", dtype="uint8", shape=(1, 2, 3))
    three = Column(name="p", kind="tensor", dtype=dtype, shape=(3, 2, 3))
    both = np.concatenate([colour, grey.repeat(3, axis=1)]).astype(dtype)
    found = keys(three, both, 8)
    assert found[4:] == keys(one, grey, 4)
    assert len(set(found)) == len({plain(row) for row in both})


def validation(folder: Path, name: str) -> set[bytes]:
    """The rows of the part, as their values are; of pictures the first channel."""
    data = Dataset(folder, "validation")
    rows = np.arange(len(data))
    if data.column(name).is_ragged:
        return {
            values.row(int(local)).astype(np.float64).tobytes()
            for values, locals_, _ in data.ragged(name, rows)
            for local in locals_
        }
    out = np.empty((len(data), *data.column(name).shape), data.column(name).dtype)
    data.gather(name, rows, out)
    return {row[0].tobytes() for row in out}


def test_lists_that_become_real_numbers_move_no_row(tmp_path: Path) -> None:
    lines = [json.dumps({"s": [row, row + 1]}) for row in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text("\n".join([*lines, '{"s": [1.5]}']))
    for name in "ab":
        convert(tmp_path / f"{name}.jsonl", tmp_path / name, split={"validation": 0.3})
    added = np.array([1.5]).tobytes()
    assert validation(tmp_path / "a", "s") == validation(tmp_path / "b", "s") - {added}


@pytest.mark.parametrize("size", [(8, 8), (5, 6)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_coloured_picture_moves_no_grey_one(
    tmp_path: Path, suffix: str, size: tuple[int, int]
) -> None:
    generator = np.random.default_rng(1)
    (tmp_path / "in" / "a").mkdir(parents=True)
    for number in range(40):
        pixels = generator.integers(0, 255, (8, 8), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / "a" / f"{number:02d}.{suffix}")
    options: dict[str, Any] = {"reading": Reading(size=size), "split": {"validation": 0.3}}
    convert(tmp_path / "in", tmp_path / "grey", **options)
    content = io.BytesIO()
    pixels = generator.integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(content, "png")
    (tmp_path / "in" / "a" / "z.png").write_bytes(content.getvalue())
    convert(tmp_path / "in", tmp_path / "colour", **options)
    before, after = validation(tmp_path / "grey", "image"), validation(tmp_path / "colour", "image")
    assert before <= after
    assert len(after - before) <= 1


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=40),
    st.sampled_from([{"a": 0.5}, {"a": 0.2, "b": 0.3}, {"a": 0.1, "b": 0.1, "c": 0.7}]),
)
@settings(deadline=None, max_examples=300)
def test_a_stratified_split_has_no_key_in_two_parts(
    rows: list[tuple[int, int]], shares: dict[str, float]
) -> None:
    words = np.array([(row % 3, row) for row, _ in rows], np.uint64)
    labels = np.array([label for _, label in rows], np.int64)
    part_of = by_class(words, labels, shares)
    parts: dict[int, set[int]] = {}
    first: dict[int, int] = {}
    for (row, label), part in zip(rows, part_of.tolist(), strict=True):
        parts.setdefault(row, set()).add(part)
        first[row] = min(label, first.get(row, label))
    assert all(len(found) == 1 for found in parts.values())
    # Exact up to the runs at the borders: a border lies at most a run behind its place.
    counted = np.array([first[row] for row, _ in rows])
    numbers = np.array([row for row, _ in rows])
    for label in set(counted.tolist()):
        of_class = counted == label
        longest = np.bincount(numbers[of_class]).max()
        for number, border in enumerate(np.cumsum(list(shares.values())), start=1):
            up_to = np.isin(part_of[of_class], range(1, number + 1)).sum()
            wanted = np.floor(border * of_class.sum() + 0.5)
            assert wanted <= up_to <= wanted + longest - 1 or up_to == wanted
