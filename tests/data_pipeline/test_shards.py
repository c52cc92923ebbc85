import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_pipeline.errors import DataError, StorageError
from data_pipeline.manifest import DTYPES, Column, Shard
from data_pipeline.shards import arrow_type, file_sha256, map_shard, verify_shard, write_shard
from data_pipeline.writer import write_dataset
from tests.conftest import ROOT

IMAGE = Column(name="image", kind="tensor", dtype="uint8", shape=(3, 4, 5))
LABEL = Column(name="label", kind="label", dtype="int64", classes=("a", "b"))
COLUMNS = (IMAGE, LABEL)


def some_rows(count: int) -> dict[str, NDArray[Any]]:
    generator = np.random.default_rng(count)
    return {
        "image": generator.integers(0, 256, (count, 3, 4, 5), dtype=np.uint8),
        "label": generator.integers(0, 2, count),
    }


def mapped(root: Path, shard: Shard, columns: tuple[Column, ...]) -> dict[str, NDArray[Any]]:
    """The columns of fixed shape of a shard."""
    views = map_shard(root, shard, columns).columns
    arrays = {name: view for name, view in views.items() if isinstance(view, np.ndarray)}
    assert list(arrays) == list(views)
    return arrays


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shard]:
    root = tmp_path_factory.mktemp("shard")
    return root, write_shard(root, "train/0.arrow", COLUMNS, some_rows(9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (3, 4, 5)])
def test_what_was_written_is_read_back_for_every_dtype_and_shape(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    column = Column(name="x", kind="tensor" if shape else "number", dtype=dtype, shape=shape)
    size = 6 * int(np.prod(shape))
    rows = np.arange(-3, size - 3).reshape(6, *shape).astype(dtype)
    shard = write_shard(tmp_path, "x.arrow", (column,), {"x": rows})
    view = mapped(tmp_path, shard, (column,))["x"]
    assert view.dtype == rows.dtype
    assert view.shape == rows.shape
    assert np.array_equal(view, rows)


def test_rows_that_lie_scattered_in_memory_are_written_right(tmp_path: Path) -> None:
    rows = some_rows(10)
    scattered = {
        "image": rows["image"].transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2)[::-2],
        "label": rows["label"][::-2],
    }
    shard = write_shard(tmp_path, "x.arrow", COLUMNS, scattered)
    views = mapped(tmp_path, shard, COLUMNS)
    assert np.array_equal(views["image"], rows["image"][::-2])
    assert np.array_equal(views["label"], rows["label"][::-2])


def test_the_shard_says_what_the_file_is(written: tuple[Path, Shard]) -> None:
    root, shard = written
    file = root / "train" / "0.arrow"
    assert shard == Shard(
        path="train/0.arrow", rows=9, size_bytes=file.stat().st_size, sha256=file_sha256(file)
    )


def test_a_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    one = write_shard(tmp_path, "one.arrow", COLUMNS, some_rows(9))
    two = write_shard(tmp_path, "two.arrow", COLUMNS, some_rows(9))
    assert one.sha256 == two.sha256


def test_plain_pyarrow_reads_a_shard_as_one_batch_of_fixed_shape_tensors(
    written: tuple[Path, Shard],
) -> None:
    root, shard = written
    with pa.ipc.open_file(str(root / shard.path)) as reader:
        assert reader.num_record_batches == 1
        batch = reader.get_batch(0)
    assert batch.schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), (3, 4, 5))
    assert batch.schema.field("label").type == pa.int64()
    assert np.array_equal(batch.column("image").to_numpy_ndarray(), some_rows(9)["image"])
    assert batch.column("label").to_pylist() == some_rows(9)["label"].tolist()


def test_a_mapped_column_cannot_be_written_to(written: tuple[Path, Shard]) -> None:
    views = mapped(*written, COLUMNS)
    assert [view.flags.writeable for view in views.values()] == [False, False]
    with pytest.raises(ValueError, match="read-only"):
        views["label"][0] = 1


def test_a_mapped_column_is_the_file_itself_and_no_copy(tmp_path: Path) -> None:
    rows = some_rows(1_000)
    shard = write_shard(tmp_path, "x.arrow", COLUMNS, rows)
    allocated = pa.total_allocated_bytes()
    view = mapped(tmp_path, shard, COLUMNS)["image"]
    assert pa.total_allocated_bytes() - allocated < 4_096
    file = tmp_path / "x.arrow"
    place = file.read_bytes().index(rows["image"].tobytes())
    with file.open("r+b") as handle:
        handle.seek(place)
        handle.write(bytes([int(rows["image"][0, 0, 0, 0]) ^ 255]))
    # The file was changed after it was mapped, and the view shows it.
    assert view[0, 0, 0, 0] == rows["image"][0, 0, 0, 0] ^ 255


def test_an_undamaged_shard_is_verified(written: tuple[Path, Shard]) -> None:
    verify_shard(*written)


@given(data=st.data(), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=150)
def test_a_single_flipped_bit_anywhere_is_found(
    written: tuple[Path, Shard], data: st.DataObject, bit: int
) -> None:
    root, shard = written
    content = bytearray((root / shard.path).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << bit
    damaged = root / "damaged.arrow"
    damaged.write_bytes(content)
    listed = Shard(path=damaged.name, rows=9, size_bytes=shard.size_bytes, sha256=shard.sha256)
    with pytest.raises(DataError) as caught:
        verify_shard(root, listed)
    assert str(caught.value) == (
        f"shard {damaged} is damaged: its SHA-256 is {file_sha256(damaged)[:16]}..., the manifest "
        f"says {shard.sha256[:16]}...; write the data set anew or restore the file"
    )


@pytest.mark.parametrize("num_bytes_kept", [0, 1, 100, -1])
def test_a_cut_file_is_found(
    written: tuple[Path, Shard], tmp_path: Path, num_bytes_kept: int
) -> None:
    root, shard = written
    content = (root / shard.path).read_bytes()[:num_bytes_kept]
    (tmp_path / "train").mkdir()
    file = tmp_path / shard.path
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        verify_shard(tmp_path, shard)
    assert str(caught.value) == (
        f"shard {file} has {len(content):,} bytes, the manifest says {shard.size_bytes:,}: "
        "it was cut or changed; write the data set anew or restore the file"
    )
    with pytest.raises(DataError, match=r"0\.arrow cannot be read as Arrow IPC"):
        map_shard(tmp_path, shard, COLUMNS)


def test_a_missing_shard_is_named(written: tuple[Path, Shard], tmp_path: Path) -> None:
    _, shard = written
    message = f"shard {tmp_path / shard.path} is missing; the manifest lists it"
    with pytest.raises(DataError) as caught:
        verify_shard(tmp_path, shard)
    assert str(caught.value) == message
    with pytest.raises(DataError) as caught:
        map_shard(tmp_path, shard, COLUMNS)
    assert str(caught.value) == message


def test_no_damage_to_a_header_ends_the_process_or_gives_rows_of_another_shape(
    tmp_path: Path,
) -> None:
    rows = some_rows(2)
    shard = write_shard(tmp_path, "x.arrow", COLUMNS, rows)
    file = tmp_path / "x.arrow"
    good = file.read_bytes()
    num_refused = 0
    for place in range(len(good)):
        for mask in (1, 128, 255):
            damaged = bytearray(good)
            damaged[place] ^= mask
            # A new file each time: to change one that is mapped would change the views.
            file.unlink()
            file.write_bytes(damaged)
            try:
                views = mapped(tmp_path, shard, COLUMNS)
            except DataError:
                num_refused += 1
            else:
                assert {key: view.shape for key, view in views.items()} == {
                    key: values.shape for key, values in rows.items()
                }
    assert num_refused > 500


def test_a_file_that_is_no_arrow_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_bytes(b"not an arrow file, though long enough to be one")
    listed = Shard(path="x.arrow", rows=1, size_bytes=47, sha256="")
    with pytest.raises(DataError, match=r"shard .*x\.arrow cannot be read as Arrow IPC: "):
        map_shard(tmp_path, listed, COLUMNS)


def test_other_rows_than_listed_are_refused(written: tuple[Path, Shard]) -> None:
    root, shard = written
    listed = Shard(path=shard.path, rows=8, size_bytes=shard.size_bytes, sha256=shard.sha256)
    with pytest.raises(DataError) as caught:
        map_shard(root, listed, COLUMNS)
    assert str(caught.value) == f"shard {root / shard.path} has 9 rows, the manifest says 8"


def test_a_shard_without_a_listed_column_is_refused(written: tuple[Path, Shard]) -> None:
    root, shard = written
    listed = Column(name="weight", kind="number", dtype="float32")
    with pytest.raises(DataError) as caught:
        map_shard(root, shard, (*COLUMNS, listed))
    assert str(caught.value) == (
        f"shard {root / shard.path} has the columns ['image', 'label'], but not one 'weight'"
    )


@pytest.mark.parametrize(
    "listed",
    [
        Column(name="image", kind="tensor", dtype="int8", shape=(3, 4, 5)),
        Column(name="image", kind="tensor", dtype="uint8", shape=(3, 5, 4)),
        Column(name="image", kind="tensor", dtype="uint8", shape=(60,)),
        Column(name="image", kind="number", dtype="uint8"),
    ],
)
def test_a_column_of_another_type_than_listed_is_refused(
    written: tuple[Path, Shard], listed: Column
) -> None:
    root, shard = written
    with pytest.raises(DataError) as caught:
        map_shard(root, shard, (listed,))
    assert str(caught.value) == (
        f"shard {root / shard.path}: column 'image' is "
        "extension<arrow.fixed_shape_tensor[value_type=uint8, shape=[3,4,5]]> with 0 nulls, "
        f"the manifest says {arrow_type(listed)} without nulls"
    )


def write_foreign(file: Path, name: str, values: pa.Array) -> Shard:
    """A shard by another program's hand."""
    batch = pa.record_batch([values], names=[name])
    with pa.ipc.new_file(str(file), batch.schema) as writer:
        writer.write_batch(batch)
    return Shard(path=file.name, rows=len(values), size_bytes=file.stat().st_size, sha256="")


def test_nulls_are_refused(tmp_path: Path) -> None:
    number = Column(name="x", kind="number", dtype="int64")
    shard = write_foreign(tmp_path / "x.arrow", "x", pa.array([1, None, 3]))
    with pytest.raises(DataError, match=r"x\.arrow: column 'x' is int64 with 1 nulls"):
        map_shard(tmp_path, shard, (number,))


def test_nulls_within_a_tensor_are_refused(tmp_path: Path) -> None:
    tensor = Column(name="x", kind="tensor", dtype="int64", shape=(2,))
    storage = pa.FixedSizeListArray.from_arrays(pa.array([1, None, 3, 4]), 2)
    values = pa.ExtensionArray.from_storage(arrow_type(tensor), storage)
    shard = write_foreign(tmp_path / "x.arrow", "x", values)
    with pytest.raises(DataError, match=r"x\.arrow: column 'x' lacks values"):
        map_shard(tmp_path, shard, (tensor,))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column(name="x", kind="tensor", dtype="bool", shape=(2,)), "'x' has dtype 'bool'; shards"),
        (Column(name="x", kind="number", dtype="float99"), "'x' has dtype 'float99'; shards hold"),
        (Column(name="x", kind="tensor", dtype="int8", shape=(0,)), r"'x' has shape \(0,\); sizes"),
        (Column(name="x", kind="number", dtype="int8", shape=(2,)), r"a number of shape \(2,\)"),
        (Column(name="x", kind="tensor", dtype="int8"), r"is a tensor of shape \(\)"),
        (Column(name="x", kind="label", dtype="float32"), "is a label of float32: give whole"),
    ],
)
def test_a_column_that_no_shard_can_hold_is_refused(
    tmp_path: Path, column: Column, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path, "x.arrow", (column,), {"x": np.zeros(2)})


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (np.zeros((2, 3, 4, 5), np.int8), "int8 of shape (3, 4, 5)"),
        (np.zeros((2, 3, 4), np.uint8), "uint8 of shape (3, 4)"),
        (np.zeros((2, 60), np.uint8), "uint8 of shape (60,)"),
    ],
)
def test_rows_that_are_not_as_declared_are_refused(
    tmp_path: Path, rows: NDArray[Any], found: str
) -> None:
    with pytest.raises(DataError) as caught:
        write_shard(tmp_path, "x.arrow", (IMAGE,), {"image": rows})
    assert str(caught.value) == (
        "column 'image' is declared as uint8 of shape (3, 4, 5), but its rows are " + found
    )


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").symlink_to("/dev/full")
    with pytest.raises(StorageError) as caught:
        write_shard(tmp_path, "x.arrow", COLUMNS, some_rows(3_000))
    assert str(tmp_path / "x.arrow") in str(caught.value)
    assert os.strerror(errno.ENOSPC) in str(caught.value)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match=r"cannot write .*train/0\.arrow: "):
        write_shard(tmp_path, "train/0.arrow", COLUMNS, some_rows(1))


def test_more_shards_than_files_may_be_open_raise_the_limit_instead_of_failing(
    tmp_path: Path,
) -> None:
    column = Column(name="x", kind="number", dtype="float32")
    rows = {"x": np.arange(300, dtype=np.float32)}
    write_dataset(tmp_path / "set", "many", [column], {"train": rows}, rows_per_shard=1)
    program = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from data_pipeline import Dataset\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))\n"
        "data, out = Dataset(sys.argv[1]), np.empty(300, np.float32)\n"
        "data.gather('x', np.arange(300), out)\n"
        "print(out.sum())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "set")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert found.stdout.strip() == "44850.0"
