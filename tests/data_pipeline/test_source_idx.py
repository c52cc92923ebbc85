import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import DataError
from data_pipeline.manifest import Column
from data_pipeline.sources.idx import matches, open_source
from data_pipeline.sources.source import Reading
from tests.read_back import check_converted, read_back, with_small_blocks

# http://yann.lecun.com/exdb/mnist: zero, zero, type, dimensions; sizes; values, all big-endian
CODES = {"uint8": 8, "int8": 9, "int16": 11, "int32": 12, "float32": 13, "float64": 14}

IMAGES = np.random.default_rng(0).integers(0, 256, (7, 4, 5), np.uint8)
LABELS = np.array([3, 0, 1, 1, 2, 0, 1], np.uint8)
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def idx(values: NDArray[Any]) -> bytes:
    head = bytes([0, 0, CODES[values.dtype.name], values.ndim])
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return head + sizes + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write(
    folder: Path,
    names: tuple[str, str] = TRAIN,
    images: NDArray[Any] = IMAGES,
    labels: NDArray[Any] = LABELS,
    packed: bool = False,
) -> Path:
    for name, values in zip(names, (images, labels), strict=True):
        content = idx(values)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(
            gzip.compress(content) if packed else content
        )
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_has_the_parts_of_its_files(tmp_path: Path, packed: bool) -> None:
    write(tmp_path, packed=packed)
    write(tmp_path, TEST, IMAGES[:2], LABELS[:2], packed=packed)
    source = open_source(tmp_path, Reading())
    assert source.columns == (
        Column(name="image", kind="tensor", dtype="uint8", shape=(1, 4, 5)),
        Column(name="label", kind="label", dtype="int64", classes=("0", "1", "2", "3")),
    )
    parts = read_back(source)
    assert list(parts) == ["test", "train"]
    np.testing.assert_array_equal(parts["train"].array("image"), IMAGES[:, None])
    np.testing.assert_array_equal(parts["train"].array("label"), LABELS)
    np.testing.assert_array_equal(parts["test"].array("image"), IMAGES[:2, None])
    suffix = ".gz" if packed else ""
    assert parts["test"].origins == [f"{TEST[0]}{suffix} row {row}" for row in (0, 1)]


@pytest.mark.parametrize("packed", [(False, False), (True, False), (False, True), (True, True)])
def test_an_images_file_is_read_with_the_labels_beside_it(
    tmp_path: Path, packed: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_small_blocks(monkeypatch, "idx")
    files = []
    for name, values, is_packed in zip(TRAIN, (IMAGES, LABELS), packed, strict=True):
        files.append(tmp_path / (f"{name}.gz" if is_packed else name))
        files[-1].write_bytes(gzip.compress(idx(values)) if is_packed else idx(values))
    source = open_source(files[0], Reading())
    # 20 bytes an image; what is packed can only be read from its beginning.
    assert [(p.start, p.stop) for p in source.pieces] == [(0, 7)]
    assert len(list(source.read(source.pieces[0]))) == 2
    monkeypatch.setattr("data_pipeline.sources.idx.PIECE_BYTES", 60)
    source = open_source(files[0], Reading())
    assert len(source.pieces) == (1 if packed[0] else 3)
    rows = read_back(source)[None]
    np.testing.assert_array_equal(rows.array("image"), IMAGES[:, None])
    np.testing.assert_array_equal(rows.array("label"), LABELS)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(CODES)), st.booleans(), st.data())
def test_all_types_are_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, packed: bool, data: Any
) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=3, max_dims=3, max_side=5))
    images = data.draw(hnp.arrays(np.dtype(dtype), shape))
    labels = data.draw(hnp.arrays(np.int32, shape[:1], elements=st.integers(0, 1000)))
    folder = write(tmp_path_factory.mktemp("idx"), TRAIN, images, labels, packed)
    rows = read_back(open_source(folder, Reading()))["train"]
    assert rows.array("image").dtype == dtype
    np.testing.assert_array_equal(rows.array("image"), images[:, None])
    np.testing.assert_array_equal(rows.array("label"), labels)


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", "train"),
        ("emnist-letters-test-images-idx3-ubyte", "emnist-letters-test-labels-idx1-ubyte", "test"),
        ("val-images-idx3-ubyte", "val-labels-idx1-ubyte", "validation"),
        ("images-idx3-ubyte", "labels-idx1-ubyte", None),
    ],
)
def test_files_go_by_several_names(
    tmp_path: Path, images: str, labels: str, part: str | None
) -> None:
    write(tmp_path, (images, labels))
    assert list(read_back(open_source(tmp_path, Reading()))) == [part]
    assert matches(tmp_path)
    assert matches(tmp_path / images)


def test_the_plain_file_goes_before_the_packed_one(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, images=IMAGES[::-1], labels=LABELS[::-1], packed=True)
    rows = read_back(open_source(tmp_path, Reading()))["train"]
    np.testing.assert_array_equal(rows.array("label"), LABELS)


def test_with_a_size_images_are_those_that_pillow_resizes(tmp_path: Path) -> None:
    source = open_source(write(tmp_path), Reading(size=(8, 3)))
    assert source.columns[0].shape == (1, 8, 3)
    for found, image in zip(read_back(source)["train"].values["image"], IMAGES, strict=True):
        expected = Image.fromarray(image).resize((3, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found[0], np.asarray(expected))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("cut", [1, 5])
def test_a_file_cut_short_is_refused_with_both_sizes(tmp_path: Path, which: int, cut: int) -> None:
    file = write(tmp_path) / TRAIN[which]
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    shape = ("(7, 4, 5)", "(7,)")[which]
    with pytest.raises(DataError) as caught:
        open_source(tmp_path, Reading())
    assert str(caught.value) == (
        f"{file} is cut short: uint8 of shape {shape} takes {len(content)} bytes, but there are "
        f"{len(content) - cut}; get the file anew"
    )
    file.write_bytes(content + b"\0")
    with pytest.raises(
        DataError, match=f"bytes behind its end: .* takes {len(content)} bytes, but"
    ):
        open_source(tmp_path, Reading())


@pytest.mark.parametrize("which", [0, 1])
def test_a_packed_file_cut_short_is_refused(tmp_path: Path, which: int) -> None:
    file = write(tmp_path, packed=True) / f"{TRAIN[which]}.gz"
    whole = idx((IMAGES, LABELS)[which])

    def read() -> None:
        read_back(open_source(tmp_path, Reading()))

    file.write_bytes(gzip.compress(whole, mtime=0)[:-9])
    with pytest.raises(
        DataError, match=rf"cut short.*({len(whole)} bytes, but the packed|end-of-stream)"
    ):
        read()
    file.write_bytes(gzip.compress(whole[:-2]))
    with pytest.raises(
        DataError, match=f"takes {len(whole)} bytes, but there are {len(whole) - 2};"
    ):
        read()
    file.write_bytes(gzip.compress(whole + b"\0\0"))
    with pytest.raises(DataError, match=f"bytes, but there are at least {len(whole) + 1};"):
        read()
    damaged = bytearray(gzip.compress(whole))
    damaged[-6] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(
        DataError, match=f"{file.name} is damaged, cut short or cannot be read: CRC"
    ):
        read()


def test_sizes_that_no_packed_file_can_hold_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path, packed=True) / f"{TRAIN[0]}.gz"
    file.write_bytes(gzip.compress(b"\0\0\x08\3" + struct.pack(">3I", 7, 2**31, 2**31)))
    with pytest.raises(
        DataError, match="damaged or cut short: unpacked it takes 32,281,802,128,991"
    ):
        open_source(tmp_path, Reading())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file: it begins with nothing, but two zero bytes, a type"),
        (b"\0\0\x08", "is no IDX file: it begins with 00 00 08, but"),
        (b"\1\0\x08\3", "is no IDX file: it begins with 01 00 08 03, but"),
        (b"\0\0\x0a\3", "is no IDX file: it begins with 00 00 0a 03, but"),
        (b"\0\0\x08\0", "is no IDX file: it begins with 00 00 08 00, but"),
        (b"\0\0\x08\3\0\0", "is cut short: its header takes 16 bytes, but there are 6"),
        (b"\x1f\x8bnothing", "is damaged, cut short or cannot be read"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (write(tmp_path) / TRAIN[0]).write_bytes(content)
    with pytest.raises(DataError, match=f"{TRAIN[0]} {message}"):
        open_source(tmp_path, Reading())


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, LABELS[:5], r"holds 7 images, but .*labels-idx1-ubyte 5 labels: they do not"),
        (IMAGES[:0], LABELS[:0], r"array of shape \(0, 4, 5\): images are \(N, H, W\), with a row"),
        (IMAGES[0], LABELS[:4], r"array of shape \(4, 5\): images are \(N, H, W\)"),
        (IMAGES, IMAGES[:, 0], r"holds uint8 of shape \(7, 5\): labels are whole numbers of"),
        (IMAGES, LABELS * np.float32(1), r"holds float32 of shape \(7,\): labels are whole"),
        (IMAGES, LABELS.astype("i2") - 1, "has the label -1: labels are numbered from 0"),
    ],
)
def test_images_and_labels_that_do_not_go_together_are_refused(
    tmp_path: Path, images: NDArray[Any], labels: NDArray[Any], message: str
) -> None:
    write(tmp_path, TRAIN, images, labels)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path, Reading())


def test_parts_need_images_of_one_kind(tmp_path: Path) -> None:
    write(write(tmp_path), TEST, IMAGES[:, 1:])
    with pytest.raises(DataError, match=r"holds images of uint8 \(4, 5\), but .* \(3, 5\): all"):
        open_source(tmp_path, Reading())


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="holds no IDX file: they are called like train-images-idx3"
    ):
        open_source(tmp_path, Reading())
    write(tmp_path)
    (tmp_path / TRAIN[1]).rename(tmp_path / "other")
    for path in (tmp_path, tmp_path / TRAIN[0]):
        with pytest.raises(DataError, match=f"no labels file beside it: {TRAIN[1]} is missing"):
            open_source(path, Reading())
    (tmp_path / "other").rename(tmp_path / TRAIN[1])
    (tmp_path / TRAIN[0]).unlink()
    with pytest.raises(DataError, match=f"{TRAIN[1]} has no images file beside it"):
        open_source(tmp_path, Reading())
    for name in (TRAIN[1], "nothing"):
        with pytest.raises(DataError, match="is no images file of the IDX format: give one called"):
            open_source(tmp_path / name, Reading())


def test_several_data_sets_in_a_folder_are_refused(tmp_path: Path) -> None:
    write(write(tmp_path), ("fashion-train-images-idx3-ubyte", "fashion-train-labels-idx1-ubyte"))
    with pytest.raises(DataError, match="holds IDX files of several data sets, or of parts that"):
        open_source(tmp_path, Reading())


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    write(write(tmp_path), ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"))
    with pytest.raises(DataError, match="are both the images of 'train-'"):
        open_source(tmp_path, Reading())


def test_options_for_columns_are_refused_since_they_are_fixed(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"--type is given for \['image'\], but the columns of this"
    ):
        open_source(write(tmp_path), Reading(types={"image": "int8"}))


def test_detection_goes_by_the_names_of_files(tmp_path: Path) -> None:
    (tmp_path / "train-images.png").touch()
    assert not matches(tmp_path)
    assert not matches(tmp_path / "train-images.png")


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_converted(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    write(write(folder, packed=packed), TEST, IMAGES[:3] // 2, LABELS[:3], packed=packed)
    source = check_converted(folder, tmp_path / "set", Reading())
    assert type(source).__name__ == "IdxFiles"
