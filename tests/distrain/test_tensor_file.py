"""A safetensors file laid out and written by ourselves: the library's bytes, in hashed chunks."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from distrain.coordinator import folder_store, tensor_file
from distrain.coordinator.folder_store import write_chunks
from distrain.coordinator.tensor_file import CHUNK_BYTES, laid_out
from distrain.errors import ConfigError

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float64]
DTYPES += [torch.float16, torch.int32, torch.int16, torch.complex64, torch.float8_e5m2]

shapes = st.lists(st.integers(0, 4), max_size=3)
described = st.dictionaries(
    st.text(max_size=8), st.tuples(st.sampled_from(DTYPES), shapes, st.booleans()), max_size=8
)


def made(dtype: torch.dtype, shape: list[int], turned: bool) -> torch.Tensor:
    tensor = (torch.arange(64)[: torch.Size(shape).numel()] % 2).view(shape).to(dtype)
    return tensor.transpose(0, -1) if turned and shape else tensor


@given(described)
def test_the_bytes_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory,
    described: dict[str, tuple[torch.dtype, list[int], bool]],
) -> None:
    tensors = {name: made(*one) for name, one in described.items()}
    wanted = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    file = laid_out(tensors)
    path = tmp_path_factory.mktemp("files") / "some.safetensors"
    assert write_chunks(path, file.num_bytes, file.chunks(tensors)) == [
        hashlib.sha256(wanted).hexdigest()
    ]
    assert path.read_bytes() == wanted
    assert file.num_bytes == len(wanted)
    content = torch.frombuffer(bytearray(wanted), dtype=torch.uint8)
    for name, view in file.views(content).items():
        assert view.dtype == tensors[name].dtype
        assert torch.equal(view.to(torch.complex64), tensors[name].to(torch.complex64))


def test_chunks_that_are_written_side_by_side_come_to_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads than cores, and calls that take a part of the bytes only."""
    real = os.pwritev

    def some_of_it(file: int, pieces: list[memoryview], start: int) -> int:
        return real(file, [pieces[0][: max(1, len(pieces[0]) // 2)]], start)

    monkeypatch.setattr(tensor_file, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(folder_store, "PER_WRITER_BYTES", 1000)
    monkeypatch.setattr(os, "pwritev", some_of_it)
    tensors = {str(n): torch.full((n,), n, dtype=torch.int64) for n in range(120)}
    wanted = save(tensors)
    file = laid_out(tensors)
    digests = write_chunks(tmp_path / "file", file.num_bytes, file.chunks(tensors), 5)
    assert (tmp_path / "file").read_bytes() == wanted
    chunks = [wanted[start : start + 1000] for start in range(0, len(wanted), 1000)]
    assert digests == [hashlib.sha256(chunk).hexdigest() for chunk in chunks]


def test_what_one_of_the_writers_meets_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    tensors = {"a": torch.zeros(CHUNK_BYTES)}
    file = laid_out(tensors)
    with pytest.raises(OSError, match="No space left"):
        write_chunks(tmp_path / "file", file.num_bytes, file.chunks(tensors))


def test_a_dtype_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x is of torch\.complex128, which a checkpoint can't"):
        laid_out({"x": torch.zeros(1, dtype=torch.complex128)})
