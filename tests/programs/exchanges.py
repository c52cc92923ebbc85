"""Compares Horovod's exchanges with torch.distributed's, in one and the same group of workers.

Started by `horovodrun -np W`: exchanges.py FOLDER, which takes the store of torch's group.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import distributed

from distrain.parallel import world as worlds
from distrain.parallel.communicator import Communicator, TorchCommunicator
from distrain.parallel.horovod_communicator import SAME_NAMES, HorovodCommunicator

DTYPES = (
    *(torch.uint8, torch.int32, torch.int64, torch.bool),
    *(torch.float32, torch.float64, torch.bfloat16),
)
SHAPES = ((), (5,), (3, 4), (0, 4), (7, 1, 3), (100_003,))


def tensors(rank: int, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """One of each dtype, other ones on each rank."""
    generator = torch.Generator().manual_seed(rank)
    for dtype in DTYPES:
        yield (100 * torch.randn(shape, generator=generator)).to(dtype)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether dtype, shape and every bit are the same."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def compare_blocking(ours: Communicator, torchs: Communicator) -> None:
    for shape in SHAPES:
        for send in tensors(ours.rank, shape):
            before = send.clone()
            gathered = ours.all_gather(send)
            assert same(gathered, torchs.all_gather(send)), (send.dtype, shape)
            assert same(send, before)
            out = torch.empty_like(gathered)
            assert ours.all_gather(send, out=out) is out
            assert same(out, gathered)
            there, here = send.clone(), send.clone()
            torchs.broadcast(there)
            ours.broadcast(here)
            assert same(here, there), (send.dtype, shape)
    turned = torch.arange(6.0).view(2, 3).T + ours.rank
    assert same(ours.all_gather(turned), torchs.all_gather(turned))
    ours.broadcast(turned)
    assert torch.equal(turned, torch.arange(6.0).view(2, 3).T)
    # A part of a larger tensor, which begins at no whole word.
    part = torch.arange(17, dtype=torch.uint8)[1 + ours.rank :][:8]
    assert same(ours.all_gather(part), torchs.all_gather(part))


def check_all_to_all(ours: HorovodCommunicator) -> None:
    for width in (0, 1, 3, 8, 50_001):
        # What each rank sends, so that each knows what it has to get.
        sent = [list(tensors(rank, (ours.world_size, width))) for rank in range(ours.world_size)]
        for number, dtype in enumerate(DTYPES):
            out = torch.empty((ours.world_size, width), dtype=dtype)
            ours.start_all_to_all(sent[ours.rank][number], out).wait()
            expected = torch.stack([rows[number][ours.rank] for rows in sent])
            assert same(out, expected), (dtype, width)


def check_sum_of_two(ours: HorovodCommunicator) -> None:
    special = torch.tensor([0.0, -0.0, 1e-45, 3e38, float("inf"), 1.0, 2.0**24])
    for size in (1, 1000, 1_000_003):
        terms = [
            torch.cat([torch.randn(size, generator=torch.Generator().manual_seed(rank)), special])
            for rank in range(2)
        ]
        mine = terms[ours.rank].clone()
        ours.start_sum_of_two(mine).wait()
        assert same(mine, terms[0] + terms[1]), size


def check_many_at_once(ours: HorovodCommunicator) -> None:
    """More of one size than there are names, and of three kinds, waited for in no order."""
    size, number = ours.world_size, 3 * SAME_NAMES
    sends = [torch.full((size, 1024), 1000.0 * k + ours.rank) for k in range(number)]
    gathered = [torch.empty(size, size, 1024) for _ in sends]
    turned = [torch.empty(size, 1024) for _ in sends]
    started = []
    for send, all_of_them, row in zip(sends, gathered, turned, strict=True):
        started += [ours.start_all_gather(send, all_of_them), ours.start_all_to_all(send, row)]
    for exchange in started[::-2] + started:
        exchange.wait()
    ranks = torch.arange(float(size))
    for k in range(number):
        assert (gathered[k] == 1000.0 * k + ranks[:, None, None]).all()
        assert (turned[k] == 1000.0 * k + ranks[:, None]).all()


def main(folder: str) -> None:
    ours = worlds.join("horovod").communicator
    assert worlds.join("horovod").size == ours.world_size  # a second time changes nothing
    store = f"file://{Path(folder) / 'store'}"
    size, rank = ours.world_size, ours.rank
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    torchs = TorchCommunicator()
    compare_blocking(ours, torchs)
    if size > 1:
        assert isinstance(ours, HorovodCommunicator)
        check_all_to_all(ours)
        check_many_at_once(ours)
    if size == 2:
        assert isinstance(ours, HorovodCommunicator)
        check_sum_of_two(ours)
    (Path(folder) / f"agreed-{rank}").touch()


if __name__ == "__main__":
    main(sys.argv[1])
