import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import DataError
from data_pipeline.sources.numpy_files import open_source
from data_pipeline.sources.source import Reading
from tests.read_back import only_part
from tests.source_files import write_arrays

X = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
Y = np.array([3, 1, 0, 1, 2, 3, 3, 0, 1, 1])


@pytest.mark.parametrize("cut", [1, 50, 235])
def test_an_npy_cut_short_or_with_bytes_behind_its_end_is_refused(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "a.npy"
    np.save(file, X)
    content = file.read_bytes()
    file.write_bytes(content[:-cut])
    with pytest.raises(DataError) as caught:
        open_source(file, Reading())
    assert str(caught.value) == (
        f"{file}: the array 'x' is cut short: float32 of shape (10, 3, 2) takes 368 bytes, but "
        f"there are {368 - cut}; write the file anew"
    )
    file.write_bytes(content + b"\0" * cut)
    with pytest.raises(DataError, match=r"has bytes behind its end: .* takes 368 bytes, but there"):
        open_source(file, Reading())


def test_what_is_no_npy_or_npz_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"a\.npy is no NumPy array: "):
        open_source(tmp_path / "a.npy", Reading())
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.npy is no NumPy array: "):
        open_source(tmp_path / "a.npy", Reading())
    (tmp_path / "a.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"a\.npz is damaged or cannot be read: "):
        open_source(tmp_path / "a.npz", Reading())
    (tmp_path / "a.txt").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"a\.txt is no \.npy or \.npz file, nor a folder"):
        open_source(tmp_path / "a.txt", Reading())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DataError, match=r"holds 'readme\.txt', which is no array: take it out"):
        open_source(tmp_path / "a.npz", Reading())
    zipfile.ZipFile(tmp_path / "a.npz", "w").close()
    with pytest.raises(DataError, match=r"holds the arrays \[\]: there must be some"):
        open_source(tmp_path / "a.npz", Reading())


def test_a_header_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Y)
    content = (tmp_path / "a.npy").read_bytes()
    for wrong in (b"{'descr': ('<i8'", b"('descr', '<i8'", b"{'descr': '<q0'"):
        (tmp_path / "a.npy").write_bytes(content.replace(b"{'descr': '<i8'", wrong))
        with pytest.raises(DataError, match=r"a\.npy is no NumPy array: "):
            open_source(tmp_path / "a.npy", Reading())


def test_structured_arrays_of_newer_files_are_refused_by_their_version(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"format 3\.0"):
        np.save(tmp_path / "a.npy", np.zeros(2, [("日", "i4")]))
    with pytest.raises(DataError, match=r"is of version 3\.0 of the NPY format; 1\.0 and 2\.0 are"):
        open_source(tmp_path / "a.npy", Reading())


@pytest.mark.parametrize("kind", ["stored", "packed"])
def test_a_changed_byte_of_an_npz_is_found(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, 5000, np.uint8)
    path = write_arrays(tmp_path / "a", kind, {"a": values})
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"the array 'a' is damaged or cannot be read"):
        only_part(open_source(path, Reading()))


def test_an_npz_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "a", "stored", {"a": X})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.npz is damaged or cannot be read: "):
        open_source(path, Reading())
