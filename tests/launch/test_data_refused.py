"""Bad input to `distrain data convert`: each kind has its own message, and the exit code 65."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from launch.main import main

Here = Callable[..., tuple[object, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs `distrain` in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return stopped.value.code, shown.out, shown.err

    return run


@pytest.fixture
def convert(tmp_path: Path, command: Here) -> Here:
    """Converts on one worker to tmp_path / "d"."""

    def run(source: Path, *options: object) -> tuple[object, str, str]:
        return command("data", "convert", source, tmp_path / "d", "--workers", 1, *options)

    return run


def photos(folder: Path, sizes: tuple[int, ...] = (20, 24)) -> Path:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number, size in enumerate(sizes):
            pixels = np.random.default_rng(size).integers(0, 256, (size, size + 4, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.jpg")
    return folder


def check_refused(found: tuple[object, str, str], destination: Path, *messages: str) -> None:
    code, _, stderr = found
    assert code == 65, stderr
    assert all(message in stderr for message in messages), stderr
    assert "Traceback" not in stderr
    assert not destination.exists()


def test_pictures_of_many_sizes_stay_encoded_and_a_model_is_told_to_have_them_cropped(
    tmp_path: Path, convert: Here, command: Here
) -> None:
    code, _, stderr = convert(photos(tmp_path / "photos"))
    assert code == 0, stderr
    job = tmp_path / "job.toml"
    job.write_text(
        f'[data]\npath = "{tmp_path / "d"}"\ninputs = "image"\ntarget = "label"\n'
        "validation = 'none'\n[model]\nbuild = 'cnn'\n[training]\nepochs = 1\nglobal_batch = 2\n"
    )
    code, _, stderr = command("train", job, "--run.dir", tmp_path / "run")
    assert code == 65, stderr
    assert "holds encoded pictures of any size" in stderr
    assert "Resize, CenterCrop or RandomResizedCrop" in stderr


def test_an_unreadable_jpeg_is_named_and_can_be_left_out(tmp_path: Path, convert: Here) -> None:
    folder = photos(tmp_path / "photos")
    whole = (folder / "dog" / "1.jpg").read_bytes()
    (folder / "dog" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    check_refused(convert(folder), tmp_path / "d", "dog/1.jpg", "--skip-bad")
    code, stdout, stderr = convert(folder, "--skip-bad", 1)
    assert code == 0, stderr
    assert "3 rows for train" in stdout
    assert "1 rows were left out" in stdout
    assert "dog/1.jpg" in stdout


def test_a_label_outside_of_the_classes_is_named_with_its_record(
    tmp_path: Path, convert: Here
) -> None:
    folder = tmp_path / "cifar"
    folder.mkdir()
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    (folder / "batches.meta.txt").write_text("\n".join(names) + "\n")
    records = b"".join(bytes([label]) + bytes(3072) for label in (0, 9, 10))
    (folder / "data_batch_1.bin").write_bytes(records)
    check_refused(convert(folder), tmp_path / "d", "data_batch_1.bin record 2", "10")


def test_a_value_that_is_no_number_is_named_with_its_row(tmp_path: Path, convert: Here) -> None:
    rows = np.ones((5, 3), np.float32)
    rows[3, 1] = np.nan
    np.save(tmp_path / "x.npy", rows)
    check_refused(convert(tmp_path / "x.npy"), tmp_path / "d", "x", "row 3")


def test_an_empty_folder_is_said_to_be_empty(tmp_path: Path, convert: Here) -> None:
    (tmp_path / "nothing").mkdir()
    check_refused(convert(tmp_path / "nothing"), tmp_path / "d", "nothing", "empty")


def test_a_destination_that_exists_is_left_as_it_is(tmp_path: Path, convert: Here) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("keep")
    code, _, stderr = convert(photos(tmp_path / "photos"))
    assert code == 65
    assert f"{tmp_path / 'd'} exists already" in stderr
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["mine.txt"]


def test_an_idx_file_that_is_cut_short_is_told_its_sizes(tmp_path: Path, convert: Here) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    images = struct.pack(">IIII", 0x803, 4, 28, 28) + bytes(3 * 784)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 4) + bytes(4))
    check_refused(convert(folder), tmp_path / "d", "train-images-idx3-ubyte.gz")


def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, convert: Here) -> None:
    folder = photos(tmp_path / "photos")
    (tmp_path / "secret.jpg").write_bytes((folder / "cat" / "0.jpg").read_bytes())
    (folder / "cat" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    check_refused(convert(folder), tmp_path / "d", "cat/link.jpg")


def test_a_parquet_file_with_malformed_offsets_is_refused(tmp_path: Path, convert: Here) -> None:
    lists = pa.array([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]] * 200)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": lists}), path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[4:64] = b"\xff" * 60  # the first page's header and the levels behind it
    path.write_bytes(content)
    check_refused(convert(path), tmp_path / "d", "t.parquet")
