from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_pipeline import DataError
from data_pipeline.manifest import Column
from data_pipeline.sources.cifar import matches, open_source
from data_pipeline.sources.source import Reading
from tests.read_back import check_converted, read_back, with_small_blocks

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE = tuple(f"fine_{number}" for number in range(100))
COARSE = tuple(f"coarse_{number}" for number in range(20))
IMAGE = Column(name="image", kind="tensor", dtype="uint8", shape=(3, 32, 32))


def images(seed: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def records(pixels: NDArray[np.uint8], *labels: NDArray[np.integer]) -> bytes:
    """https://www.cs.toronto.edu/~kriz/cifar.html: labels, then red, green and blue by rows."""
    columns = [np.asarray(label, np.uint8)[:, None] for label in labels]
    return np.concatenate([*columns, pixels.reshape(len(pixels), -1)], axis=1).tobytes()


def labels_of(seed: int, count: int, classes: int = 10) -> NDArray[np.integer]:
    return np.random.default_rng(100 + seed).integers(0, classes, count)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """Batches of 3, 4, ... 7 records and 8 of test."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    # The file that is given out ends with an empty line.
    (folder / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    for number in range(1, 6):
        content = records(images(number, number + 2), labels_of(number, number + 2))
        (folder / f"data_batch_{number}.bin").write_bytes(content)
    (folder / "test_batch.bin").write_bytes(records(images(6, 8), labels_of(6, 8)))
    return folder


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("\n".join(FINE) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n")
    for seed, name in enumerate(("train", "test")):
        coarse, fine = labels_of(seed, 6, 20), labels_of(seed, 6, 100)
        (folder / f"{name}.bin").write_bytes(records(images(seed, 6), coarse, fine))
    return folder


@pytest.mark.parametrize("small", [False, True])
def test_cifar_10_has_its_batches_in_order(
    ten: Path, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        with_small_blocks(monkeypatch, "cifar")
    source = open_source(ten, Reading())
    label = Column(name="label", kind="label", dtype="int64", classes=TEN)
    assert source.columns == (IMAGE, label)
    assert len(source.pieces) == (33 if small else 6)
    parts = read_back(source)
    expected = np.concatenate([images(number, number + 2) for number in range(1, 6)])
    np.testing.assert_array_equal(parts["train"].array("image"), expected)
    labels = np.concatenate([labels_of(number, number + 2) for number in range(1, 6)])
    np.testing.assert_array_equal(parts["train"].array("label"), labels)
    np.testing.assert_array_equal(parts["test"].array("image"), images(6, 8))
    assert parts["train"].origins[3] == "data_batch_2.bin record 0"
    assert parts["test"].origins[-1] == "test_batch.bin record 7"


def test_cifar_100_has_fine_and_coarse_labels(hundred: Path) -> None:
    source = open_source(hundred, Reading(label="coarse_label"))
    assert source.columns == (
        IMAGE,
        Column(name="label", kind="label", dtype="int64", classes=FINE),
        Column(name="coarse_label", kind="label", dtype="int64", classes=COARSE),
    )
    parts = read_back(source)
    for seed, part in enumerate(("train", "test")):
        np.testing.assert_array_equal(parts[part].array("image"), images(seed, 6))
        np.testing.assert_array_equal(parts[part].array("label"), labels_of(seed, 6, 100))
        np.testing.assert_array_equal(parts[part].array("coarse_label"), labels_of(seed, 6, 20))


def test_with_a_size_images_are_those_that_pillow_resizes(hundred: Path) -> None:
    source = open_source(hundred, Reading(size=(16, 20)))
    assert source.columns[0].shape == (3, 16, 20)
    found = read_back(source)["train"].array("image")
    for image, pixels in zip(found, images(0, 6), strict=True):
        whole = Image.fromarray(pixels.transpose(1, 2, 0))
        expected = np.asarray(whole.resize((20, 16), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))


def test_batches_may_end_early_and_test_may_be_missing(ten: Path) -> None:
    for name in ("data_batch_5.bin", "test_batch.bin"):
        (ten / name).unlink()
    assert list(read_back(open_source(ten, Reading()))) == ["train"]
    (ten / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"batches \[1, 3, 4\], but data_batch_2\.bin is missing"):
        open_source(ten, Reading())


@pytest.mark.parametrize("extra", [1, -1, -3073 * 4 + 1])
def test_a_file_that_is_not_made_of_whole_records_is_refused(ten: Path, extra: int) -> None:
    file = ten / "data_batch_2.bin"
    content = file.read_bytes()
    file.write_bytes(content + b"\0" if extra > 0 else content[:extra])
    size = 4 * 3073 + extra
    with pytest.raises(DataError) as caught:
        open_source(ten, Reading())
    assert str(caught.value) == (
        f"{file} has {size:,} bytes, which is {size // 3073} records of 3,073 bytes and "
        f"{size % 3073:,} bytes of record {size // 3073}: get the file anew"
    )


def test_an_empty_file_is_refused(ten: Path) -> None:
    (ten / "test_batch.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"test_batch\.bin is empty: get the file anew"):
        open_source(ten, Reading())


def test_a_file_that_is_cut_while_it_is_read_is_named(ten: Path) -> None:
    source = open_source(ten, Reading())
    (ten / "test_batch.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"test_batch\.bin has become shorter while it was read"):
        read_back(source)
    (ten / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch\.bin cannot be read: No such file"):
        read_back(source)


def test_a_label_outside_the_classes_is_named_with_its_record(ten: Path, hundred: Path) -> None:
    file = ten / "data_batch_3.bin"
    content = bytearray(file.read_bytes())
    content[2 * 3073] = 10
    file.write_bytes(content)
    with pytest.raises(
        DataError, match=r"batch_3\.bin record 2 has the label 10, but .* 10 classes"
    ):
        read_back(open_source(ten, Reading()))
    file = hundred / "test.bin"
    content = bytearray(file.read_bytes())
    content[5 * 3074] = 20
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"test\.bin record 5 has the coarse_label 20, but there"):
        read_back(open_source(hundred, Reading()))


@pytest.mark.parametrize("name", ["fine_label_names.txt", "coarse_label_names.txt"])
def test_names_are_needed_each_once(hundred: Path, name: str) -> None:
    (hundred / name).write_text("a\nb\na\n")
    with pytest.raises(DataError, match=rf"{name} must name each class once, a line each"):
        open_source(hundred, Reading())
    (hundred / name).write_bytes(b"\xff\n")
    with pytest.raises(DataError, match=rf"{name} cannot be read: "):
        open_source(hundred, Reading())
    (hundred / name).unlink()
    with pytest.raises(DataError, match=f"lacks {name}, which holds the names of the classes"):
        open_source(hundred, Reading())


def test_other_folders_are_refused(ten: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no file of CIFAR-10 .* or CIFAR-100"):
        open_source(tmp_path, Reading())
    with pytest.raises(
        DataError, match="is no folder: give the one that the CIFAR archive unpacks"
    ):
        open_source(ten / "test_batch.bin", Reading())
    (ten / "train.bin").touch()
    with pytest.raises(DataError, match="holds files of both CIFAR-10 and CIFAR-100"):
        open_source(ten, Reading())


def test_options_for_columns_are_refused_since_they_are_fixed(ten: Path, hundred: Path) -> None:
    for folder, names in ((ten, r"\['label'\]"), (hundred, r"\['label', 'coarse_label'\]")):
        with pytest.raises(DataError, match=f"no column 'fine', which --label names; .* {names}"):
            open_source(folder, Reading(label="fine"))
        with pytest.raises(DataError, match=r"--stack is given for \['x'\]"):
            open_source(folder, Reading(stack={"x": ("label",)}))


def test_detection_goes_by_the_names_of_files(ten: Path, hundred: Path, tmp_path: Path) -> None:
    assert matches(ten)
    assert matches(hundred)
    assert not matches(tmp_path)
    assert not matches(ten / "test_batch.bin")
    (tmp_path / "train.bin").touch()
    assert not matches(tmp_path)


@pytest.mark.parametrize("which", ["ten", "hundred"])
def test_cifar_is_converted(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = check_converted(request.getfixturevalue(which), tmp_path / "set", Reading())
    assert type(source).__name__ == "Cifar"
