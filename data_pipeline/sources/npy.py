"""Arrays in `.npy` and `.npz` files: where their bytes lie, and their rows without the rest."""

import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from data_pipeline.errors import DataError

RowReader = Callable[[int, int], NDArray[Any]]
"""Gives the rows [start, stop), in this machine's byte order; streams go forward only."""

_LOCAL_HEADER_BYTES = 30
_SUM_BYTES = 2**20


@dataclass(frozen=True)
class StoredArray:
    """One array of a file.

    Attributes:
        name: As the file calls it.
        member: The name within a `.npz`.
        dtype: As the file says, with the byte order.
        header_bytes: What lies before the data, in the member or the file.
        start: The first byte of the data in the file; None where it is compressed.
        refused: Why its values cannot be read; such an array can only be left out.
    """

    name: str
    file: Path
    member: str | None
    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    header_bytes: int
    start: int | None
    refused: str = ""

    @property
    def where(self) -> str:
        """Says for messages where it lies."""
        return f"{self.file}: the array {self.name!r}"

    @property
    def type(self) -> str:
        """The type of its values as they are read."""
        return "uint8" if self.dtype == "|b1" else np.dtype(self.dtype).newbyteorder("=").name

    @property
    def is_text(self) -> bool:
        """Whether it holds strings."""
        return np.dtype(self.dtype).kind in "US"

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def num_bytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def find_arrays(file: Path, name: str) -> list[StoredArray]:
    """The one array of a `.npy` file, called `name`, or all of a `.npz`.

    Raises:
        DataError: the file is damaged, cut short or holds other things than arrays.
    """
    if file.suffix == ".npy":
        with _reading(file), file.open("rb") as handle:
            shape, fortran, dtype, refused = _header(handle, str(file))
            start = handle.tell()
        array = StoredArray(name, file, None, dtype, shape, fortran, start, start, refused)
        _check_length(array, file.stat().st_size)
        return [array]
    with _reading(file), zipfile.ZipFile(file) as archive, file.open("rb") as handle:
        members = archive.infolist()
        arrays = [_member(file, archive, handle, member) for member in members]
    names = [array.name for array in arrays]
    if not arrays or len(set(names)) != len(names):
        raise DataError(f"{file} holds the arrays {names}: there must be some, each name once")
    return arrays


def open_rows(array: StoredArray) -> RowReader:
    """Reads rows as they are asked for: by memory map, or from a compressed stream.

    A compressed array in Fortran's order is the exception: all of it is read at once, since its
    rows lie in no one place.
    """
    order: Any = "F" if array.fortran else "C"
    if array.start is not None:
        mapped = np.memmap(
            array.file, array.dtype, "r", offset=array.start, shape=array.shape, order=order
        )
        return lambda start, stop: _native(mapped[start:stop])
    if array.fortran:
        whole = np.frombuffer(_Stream(array).take(array.num_bytes), array.dtype)
        shaped = whole.reshape(array.shape, order="F")
        return lambda start, stop: _native(shaped[start:stop])
    stream = _Stream(array)

    def read(start: int, stop: int) -> NDArray[Any]:
        content = stream.take((stop - start) * array.row_bytes)
        flat = np.frombuffer(content, array.dtype)
        return _native(flat.reshape(stop - start, *array.shape[1:]))

    return read


def check_sums(arrays: Sequence[StoredArray]) -> None:
    """Compares what lies uncompressed in `.npz` files with the sums (CRC-32) that they carry.

    Those of compressed arrays are compared as they are read, at the end of each.

    Raises:
        DataError: one differs.
    """
    for array in arrays:
        if array.member is not None and array.start is not None:
            stream = _Stream(array)
            left = array.num_bytes
            while left:
                left -= len(stream.take(min(left, _SUM_BYTES)))


class _Stream:
    """The data of a member of a `.npz`, from its beginning; its sum is checked at its end."""

    def __init__(self, array: StoredArray) -> None:
        self._array, self._left = array, array.num_bytes
        with _reading(array.file):
            self._archive = zipfile.ZipFile(array.file)
            self._handle = self._archive.open(str(array.member))
            self._handle.read(array.header_bytes)

    def take(self, num_bytes: int) -> bytes:
        with _reading(self._array.file, self._array.name):
            content = self._handle.read(num_bytes)
            self._left -= num_bytes
            if not self._left:
                self._handle.read(1)
                self.close()
        if len(content) != num_bytes:
            raise DataError(f"{self._array.where} is cut short: write the file anew")
        return content

    def close(self) -> None:
        self._handle.close()
        self._archive.close()

    def __del__(self) -> None:
        # A reader that stops half-way leaves no open file behind.
        if hasattr(self, "_handle"):
            self.close()


def _member(
    file: Path, archive: zipfile.ZipFile, handle: IO[bytes], member: zipfile.ZipInfo
) -> StoredArray:
    if not member.filename.endswith(".npy"):
        raise DataError(f"{file} holds {member.filename!r}, which is no array: take it out")
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as stream:
        shape, fortran, dtype, refused = _header(stream, f"{file}: the array {name!r}")
        header_bytes = stream.tell()
    start = None
    if member.compress_type == zipfile.ZIP_STORED:
        handle.seek(member.header_offset)
        lengths = struct.unpack("<26xHH", handle.read(_LOCAL_HEADER_BYTES))
        start = member.header_offset + _LOCAL_HEADER_BYTES + sum(lengths) + header_bytes
    found = StoredArray(
        name, file, member.filename, dtype, shape, fortran, header_bytes, start, refused
    )
    _check_length(found, member.file_size)
    return found


def _header(handle: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, str, str]:
    """Shape, whether in Fortran's order, dtype, and why it cannot be read."""
    try:
        version = npy_format.read_magic(handle)
        if version == (1, 0):
            shape, fortran, dtype = npy_format.read_array_header_1_0(handle)
        elif version == (2, 0):
            shape, fortran, dtype = npy_format.read_array_header_2_0(handle)
        else:
            raise DataError(
                f"{where} is of version {version[0]}.{version[1]} of the NPY format; "
                "1.0 and 2.0 are read, which hold all arrays but structured ones"
            )
    except (ValueError, SyntaxError, TypeError, TokenError) as error:
        raise DataError(f"{where} is no NumPy array: {error}") from error
    return shape, fortran, dtype.str, _refusal(dtype)


def _refusal(dtype: np.dtype[Any]) -> str:
    if dtype.hasobject:
        return (
            "holds Python objects, which could only be unpickled, and that runs whatever code the "
            "file says: save it as numbers or strings of one shape"
        )
    if dtype.kind not in "biufUS" or not dtype.itemsize:
        return f"holds {dtype}, which no shard can hold: save it as numbers or strings"
    return ""


def _check_length(array: StoredArray, num_bytes: int) -> None:
    if array.refused:
        return
    expected = array.header_bytes + array.num_bytes
    if num_bytes != expected:
        what = "is cut short" if num_bytes < expected else "has bytes behind its end"
        raise DataError(
            f"{array.where} {what}: {np.dtype(array.dtype)} of shape {array.shape} takes "
            f"{expected:,} bytes, but there are {num_bytes:,}; write the file anew"
        )


def _native(values: NDArray[Any]) -> NDArray[Any]:
    """A copy in this machine's byte order and C's memory order; bool as uint8."""
    native = values.dtype.newbyteorder("=")
    copy: NDArray[Any] = np.array(values, dtype=native, order="C", subok=False)
    return copy.view(np.uint8) if native.kind == "b" else copy


@contextmanager
def _reading(file: Path, name: str | None = None) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        where = file if name is None else f"{file}: the array {name!r}"
        raise DataError(f"{where} is damaged or cannot be read: {error}") from error
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(f"{file} is packed in a way that is not read: {error}") from error
