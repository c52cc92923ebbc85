"""Compares Horovod's exchanges with torch.distributed's, in one and the same group of workers.

Started by `horovodrun -np W`: exchanges.py FOLDER, which takes the store of torch's group.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import distributed

from distrain.parallel import world as worlds
from distrain.parallel.communicator import Communicator, TorchCommunicator
from distrain.parallel.horovod_communicator import HorovodCommunicator

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


def messages(sender: int, receiver: int) -> list[torch.Tensor]:
    """What one worker sends to another: none, one or several, of odd sizes; others each way."""
    number = (3 * sender + receiver) % 4
    shapes = [(11 * sender + 5 * receiver + k,) for k in range(number)]
    return [tensor for k, shape in enumerate(shapes) for tensor in tensors(10 * sender + k, shape)]


def compare_exchanges(ours: Communicator, torchs: Communicator) -> None:
    peers = [rank for rank in range(ours.world_size) if rank != ours.rank]
    sends = [(peer, tensor) for peer in peers for tensor in messages(ours.rank, peer)]
    expected = [(peer, tensor) for peer in peers for tensor in messages(peer, ours.rank)]
    # Receives of several workers may come in any order, as long as those of one keep theirs.
    expected.sort(key=lambda message: -message[0])
    for communicator in (ours, torchs):
        receives = [(peer, torch.zeros_like(tensor)) for peer, tensor in expected]
        communicator.exchange(sends, receives)
        for (_, found), (_, wanted) in zip(receives, expected, strict=True):
            assert same(found, wanted)
    ours.exchange([], [])  # all take part, and nobody has anything to send


def check_threads(ours: Communicator) -> None:
    """Two channels, each used by a thread: on one they go fast, on the other in large pieces."""
    size, channels = ours.world_size, [ours.another("one"), ours.another("two")]

    def gather(communicator: Communicator, width: int, number: int) -> None:
        for k in range(number):
            send = torch.full((width,), 100 * k + ours.rank)
            found = communicator.all_gather(send)
            assert found[:, 0].tolist() == [100 * k + rank for rank in range(size)]
            assert (found == found[:, :1]).all()

    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(gather, channels[0], 8, 100),
            pool.submit(gather, channels[1], 100_000, 20),
        ]
        gather(ours, 8, 50)
        for one in both:
            one.result()


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
        assert (ours.local_size, torchs.local_size) == (size, size)
        for _ in range(3):
            compare_exchanges(ours, torchs)
            compare_exchanges(ours.another("compared"), torchs.another("compared"))
        check_threads(ours)
    (Path(folder) / f"agreed-{rank}").touch()


if __name__ == "__main__":
    main(sys.argv[1])
