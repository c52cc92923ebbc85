"""Whatever is changed in a data set's folder is found, and named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline import DataError, write
from data_pipeline.verify import Verified, verify_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "d"
    rows = [
        {"x": np.arange(3.0) + row, "t": f"text {row}", "y": "ab"[row % 2]} for row in range(40)
    ]
    write(path, rows, label="y", split={"test": 0.3}, rows_per_shard=9)
    return path


def test_an_unharmed_folder_is_verified_by_any_number_of_threads(folder: Path) -> None:
    for threads in (None, 1, 5):
        found = verify_folder(str(folder), threads=threads)
        assert found == Verified(shards=len(list(folder.rglob("*.arrow"))), rows=40)


@given(data=st.data(), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=200)
def test_any_flipped_bit_of_any_file_is_found_and_its_file_named(
    folder: Path, data: st.DataObject, bit: int
) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    good = file.read_bytes()
    damaged = bytearray(good)
    damaged[data.draw(st.integers(0, len(good) - 1))] ^= 1 << bit
    try:
        file.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            verify_folder(folder, threads=1)
    finally:
        file.write_bytes(good)
    assert str(file) in str(caught.value)
    verify_folder(folder, threads=1)


def test_missing_and_extra_files_are_all_named(folder: Path) -> None:
    missing = sorted(folder.rglob("*.arrow"))[1]
    content = missing.read_bytes()
    missing.unlink()
    (folder / "train" / "99999.arrow").write_bytes(content)
    (folder / ".hidden").touch()
    (folder / "more").mkdir()
    (folder / "more" / "link").symlink_to("nowhere")
    try:
        with pytest.raises(DataError) as caught:
            verify_folder(folder)
    finally:
        missing.write_bytes(content)
        for extra in ("train/99999.arrow", ".hidden", "more/link"):
            (folder / extra).unlink()
        (folder / "more").rmdir()
    assert str(caught.value).splitlines() == [
        f"shard {missing} is missing; the manifest lists it",
        f"{folder}/.hidden is not in the manifest: take it out of the folder",
        f"{folder}/more/link is not in the manifest: take it out of the folder",
        f"{folder}/train/99999.arrow is not in the manifest: take it out of the folder",
    ]
    verify_folder(folder)


def test_of_many_faults_the_first_are_named(folder: Path) -> None:
    extra = [folder / f"x{number}" for number in range(7)]
    for path in extra:
        path.touch()
    try:
        with pytest.raises(DataError, match=r"x4 is not in the manifest.*\nand 2 more$"):
            verify_folder(folder)
    finally:
        for path in extra:
            path.unlink()
