"""Rows of differing length: sequences, texts, encoded pictures, from memory to shards and back."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline import DataError, Dataset, write_dataset
from data_pipeline.manifest import Column, Shard
from data_pipeline.ragged import Ragged
from data_pipeline.shards import Values, map_shard, write_shard

WALK = Column(name="walk", kind="sequence", dtype="float32", max_length=4)
TRACK = Column(name="track", kind="sequence", dtype="int16", shape=(2, 3), max_length=3)
TEXT = Column(name="text", kind="text", dtype="uint8", max_length=11)
PICTURE = Column(name="picture", kind="image", dtype="uint8", shape=(3,))
COLUMNS = (WALK, TRACK, TEXT, PICTURE)
TEXTS = ["", "häß", "a", "Ελλάδα", ""]
PICTURES = [b"\xff\xd8\xff", b"", b"\x89PNG", b"\x00" * 50, b"x"]


def some_rows() -> dict[str, Ragged]:
    generator = np.random.default_rng(0)
    walks = [generator.normal(size=length).astype(np.float32) for length in (3, 0, 4, 1, 0)]
    tracks = [generator.integers(0, 99, (length, 2, 3), np.int16) for length in (0, 3, 0, 1, 2)]
    return {
        "walk": Ragged.of(walks, "float32", ()),
        "track": Ragged.of(tracks, "int16", (2, 3)),
        "text": Ragged.of_bytes([text.encode() for text in TEXTS]),
        "picture": Ragged.of_bytes(PICTURES),
    }


def rows_of(ragged: Ragged) -> list[NDArray[Any]]:
    return [ragged.row(number) for number in range(len(ragged))]


def assert_same(found: Any, expected: Ragged) -> None:
    assert isinstance(found, Ragged)
    assert len(found) == len(expected)
    assert found.step == expected.step
    assert found.values.dtype == expected.values.dtype
    for one, other in zip(rows_of(found), rows_of(expected), strict=True):
        assert np.array_equal(one, other)


def test_rows_of_differing_length_are_read_back_from_a_shard(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "x.arrow", COLUMNS, some_rows())
    views = map_shard(tmp_path, shard, COLUMNS).columns
    for name, expected in some_rows().items():
        assert_same(views[name], expected)


def test_plain_pyarrow_reads_lists_strings_and_bytes(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "x.arrow", COLUMNS, some_rows())
    with pa.ipc.open_file(str(tmp_path / shard.path)) as reader:
        batch = reader.get_batch(0)
    assert batch.column("text").to_pylist() == TEXTS
    assert batch.column("picture").to_pylist() == PICTURES
    assert batch.column("walk").to_pylist() == [
        row.tolist() for row in rows_of(some_rows()["walk"])
    ]
    tracks = [row.reshape(-1, 6).tolist() for row in rows_of(some_rows()["track"])]
    assert batch.column("track").to_pylist() == tracks


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: str(column.name))
def test_rows_that_are_all_empty_are_read_back(tmp_path: Path, column: Column) -> None:
    step = column.shape if column.kind == "sequence" else ()
    empty = Ragged(np.zeros(4, np.int64), np.empty((0, *step), column.dtype))
    shard = write_shard(tmp_path, "x.arrow", (column,), {column.name: empty})
    assert_same(map_shard(tmp_path, shard, (column,)).columns[column.name], empty)


def test_a_data_set_gathers_padded_rows_over_shards_and_their_lengths(tmp_path: Path) -> None:
    rows = some_rows()
    write_dataset(
        tmp_path / "d", "d", (WALK, TRACK, TEXT), {"train": without(rows)}, rows_per_shard=2
    )
    dataset = Dataset(tmp_path / "d")
    chosen = np.array([4, 0, 2, 2, 1])
    for column in (WALK, TRACK, TEXT):
        out = np.full((5, 3, *column.shape), 9, column.dtype)
        lengths = np.full(5, -1, np.int64)
        dataset.gather_padded(column.name, chosen, out, lengths)
        for place, row in enumerate(chosen):
            expected = rows[column.name].row(int(row))[:3]
            assert lengths[place] == len(expected)
            assert np.array_equal(out[place, : len(expected)], expected)
            assert not out[place, len(expected) :].any()


def without(rows: dict[str, Ragged]) -> dict[str, Values]:
    return {name: values for name, values in rows.items() if name != "picture"}


@given(
    rows=st.lists(st.lists(st.integers(-9, 9), max_size=5), min_size=1, max_size=8),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_take_and_slice_are_those_of_lists(rows: list[list[int]], data: st.DataObject) -> None:
    ragged = Ragged.of([np.array(row, np.int64) for row in rows], "int64", ())
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    taken = ragged.take(np.array(chosen, np.int64))
    assert [row.tolist() for row in rows_of(taken)] == [rows[number] for number in chosen]
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    assert [row.tolist() for row in rows_of(ragged.slice(start, stop))] == rows[start:stop]
    assert ragged.lengths.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("offsets", [[0, 4], [-1, 2], [2, 1], [2**62, 2**62 + 1], [0, -5]])
def test_offsets_outside_of_the_values_are_an_index_error(offsets: list[int]) -> None:
    ragged = Ragged(np.array(offsets, np.int64), np.arange(3, dtype=np.float32))
    with pytest.raises(IndexError):
        ragged.row(0)
    with pytest.raises(IndexError):
        ragged.take(np.array([0]))
    out, lengths = np.zeros((1, 5), np.float32), np.zeros(1, np.int64)
    with pytest.raises(IndexError):
        ragged.pad_into(np.array([0]), np.array([0]), out, lengths)


def test_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'text' holds what is no text in UTF-8"):
        write_shard(tmp_path, "x.arrow", (TEXT,), {"text": Ragged.of_bytes([b"\xff\xfe"])})


def test_kinds_and_lengths_have_to_go_together(tmp_path: Path) -> None:
    fixed = Column(name="walk", kind="number", dtype="float32")
    with pytest.raises(DataError, match="is declared as number, but its rows are of differing"):
        write_shard(tmp_path, "x.arrow", (fixed,), {"walk": some_rows()["walk"]})
    with pytest.raises(DataError, match="sequence, but its rows are not of differing length"):
        write_shard(tmp_path, "x.arrow", (WALK,), {"walk": np.zeros(3, np.float32)})
    with pytest.raises(DataError, match=r"is declared as float32 of shape .* rows are int16"):
        write_shard(tmp_path, "x.arrow", (WALK,), {"walk": some_rows()["track"]})


def test_no_damage_ends_the_process(tmp_path: Path) -> None:
    shard = write_shard(tmp_path, "x.arrow", COLUMNS, some_rows())
    file = tmp_path / "x.arrow"
    good = file.read_bytes()
    num_refused = 0
    for place in range(0, len(good), 3):
        for mask in (1, 128):
            damaged = bytearray(good)
            damaged[place] ^= mask
            # A new file each time: to change one that is mapped would change the views.
            file.unlink()
            file.write_bytes(damaged)
            try:
                read_all(tmp_path, shard)
            except (DataError, IndexError):
                num_refused += 1
    assert num_refused > 100


def read_all(root: Path, shard: Shard) -> None:
    """Touches every value, by row and in a batch."""
    views = map_shard(root, shard, COLUMNS).columns
    for column in COLUMNS:
        view = views[column.name]
        assert isinstance(view, Ragged)
        assert len(view) == 5
        for row in rows_of(view):
            row.sum()
        step = column.shape if column.kind == "sequence" else ()
        out = np.zeros((5, 6, *step), column.dtype)
        view.pad_into(np.arange(5), np.arange(5), out, np.zeros(5, np.int64))


def test_ragged_rows_in_memory_make_columns_with_their_greatest_length() -> None:
    dataset = Dataset.from_arrays({"walk": some_rows()["walk"], "text": TEXTS})
    assert dataset.columns == {
        "walk": WALK,
        "text": Column(name="text", kind="text", dtype="uint8", max_length=12),
    }
    assert dataset.statistics["walk"].count == 5
    assert dataset.statistics["text"].count == 5
