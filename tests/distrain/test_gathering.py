"""Tensors of all workers on each of them (threads here), whatever their shapes."""

import pytest
import torch

from distrain.numerics import ALIGNMENT
from distrain.parallel import gathering
from distrain.parallel.gathering import gather_chunks
from distrain.parallel.world import World
from tests.thread_workers import outcomes

OF_RANK = [
    [torch.arange(6.0).view(2, 3), torch.tensor([True, False, True])],
    [],
    [torch.zeros(0, 4, dtype=torch.int64), torch.arange(1000, dtype=torch.int64).view(10, 4, 25)],
    [torch.tensor(7, dtype=torch.bfloat16), torch.full((3,), 2 + 3j, dtype=torch.complex64)],
]


def apart(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, not in one piece where there are two dimensions."""
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor


@pytest.mark.parametrize("piece_bytes", [64, 2**24])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_worker_has_all_in_order(
    size: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "PIECE_BYTES", piece_bytes)
    expected = [tensor for of_rank in OF_RANK[:size] for tensor in of_rank]

    def work(world: World) -> list[torch.Tensor]:
        return gather_chunks([apart(t) for t in OF_RANK[world.rank]], world)

    for found in outcomes(size, work):
        assert isinstance(found, list)
        assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in found)


def test_nothing_at_all_is_gathered_as_well() -> None:
    assert outcomes(3, lambda world: gather_chunks([], world)) == [[], [], []]
