"""Joining: alone without a launcher, in a group with one, and never N trainings side by side."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from distrain.errors import ConfigError, ExitCode, UsageError
from distrain.parallel import world
from distrain.parallel.communicator import Alone, TorchCommunicator

GROUP = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GROUP:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[None]:
    """A group of one that the program itself has joined."""
    store = f"file://{tmp_path / 'store'}"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    world.leave()


def test_without_a_launcher_a_process_works_alone() -> None:
    joined = world.join()
    assert isinstance(joined.communicator, Alone)
    assert (joined.rank, joined.size) == (0, 1)
    assert joined.device == torch.device("cpu") or torch.cuda.is_available()


def test_a_launcher_of_one_worker_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert isinstance(world.join().communicator, Alone)
    assert not distributed.is_initialized()


def test_a_world_size_without_the_rest_is_a_wrong_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "WORLD_SIZE is 2, but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set: start"
    with pytest.raises(UsageError, match=message) as caught:
        world.join()
    assert "distrain launch --workers 2" in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_only_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="but LOCAL_RANK, MASTER_PORT is not set"):
        world.join()


@pytest.mark.parametrize("text", ["0", "-2", "two", "1.5", "", " 2"])
def test_a_world_size_that_is_no_number_of_workers_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(UsageError, match=f"WORLD_SIZE is '{text}'; it must be a number of workers"):
        world.join()


def test_leaving_without_a_group_does_nothing() -> None:
    world.leave()
    assert not distributed.is_initialized()


@pytest.mark.usefixtures("joined")
def test_a_group_that_the_program_has_joined_is_used() -> None:
    found = world.join()
    assert isinstance(found.communicator, TorchCommunicator)
    assert (found.rank, found.size) == (0, 1)


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize(
    "send",
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(6.0).view(2, 3).T,
        torch.tensor(3, dtype=torch.int64),
        torch.zeros(0, 4),
        torch.arange(5, dtype=torch.uint8),
        torch.tensor([True, False]),
    ],
)
def test_an_exchange_stacks_what_was_sent_and_leaves_it_alone(send: torch.Tensor) -> None:
    before = send.clone()
    communicator = world.join().communicator
    for end in (communicator, Alone()):
        received = end.all_gather(send)
        assert received.shape == (1, *send.shape)
        assert torch.equal(received[0], before)
    communicator.broadcast(send)
    assert torch.equal(send, before)


@pytest.mark.usefixtures("joined")
def test_leaving_ends_the_group() -> None:
    world.leave()
    assert not distributed.is_initialized()
    assert isinstance(world.join().communicator, Alone)


@pytest.mark.parametrize(
    ("gpus", "workers_here", "backend"),
    [(0, "2", "gloo"), (1, "2", "gloo"), (2, "2", "nccl"), (8, "2", "nccl"), (2, None, "gloo")],
)
def test_nccl_is_taken_where_every_local_worker_has_a_gpu_of_its_own(
    monkeypatch: pytest.MonkeyPatch, gpus: int, workers_here: str | None, backend: str
) -> None:
    chosen: list[str] = []
    environment = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in {**environment, "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    if workers_here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", workers_here)

    def init(name: str, *, init_method: str, timeout: timedelta) -> None:
        assert (init_method, timeout) == ("env://", timedelta(seconds=7))
        chosen.append(name)
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(distributed, "init_process_group", init)
    with pytest.raises(InterruptedError):
        world.join(timeout_s=7)
    assert chosen == [backend]


@pytest.mark.parametrize("timeout_s", [0, -1.0, float("nan")])
def test_a_time_limit_that_no_exchange_keeps_is_refused(timeout_s: float) -> None:
    with pytest.raises(ConfigError, match=r"timeout_s is .*; it must be above 0"):
        world.join(timeout_s=timeout_s)
