"""The one place that joins and leaves the process group."""

import atexit
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import torch
from torch import distributed

from distrain.checks import check_above_zero
from distrain.config import Backend, ParallelConfig
from distrain.coordinator.phases import PhaseClock
from distrain.errors import ConfigError, LostPeerError, UsageError
from distrain.parallel.communicator import Alone, Communicator, TorchCommunicator
from distrain.parallel.marked_communicator import MarkedCommunicator

_LAST_TURN_S = 0.05

_RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_INTERFACE, _NO_INTERFACE = "GLOO_SOCKET_IFNAME", "Unable to find address for: "
_HOROVOD_SIZE = "HOROVOD_SIZE"

_shut_down: list[Callable[[], None]] = []

_joined: list[bool] = []


@dataclass(frozen=True)
class World:
    """This worker's place among all, the device it computes on, and where it is in a step."""

    communicator: Communicator
    device: torch.device
    phases: PhaseClock = field(default_factory=PhaseClock, compare=False)

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self.communicator.rank

    def marked(self) -> "World":
        """The same, with its exchanges marked as phases."""
        if self.size == 1:
            return self
        return replace(self, communicator=MarkedCommunicator(self.communicator, self.phases))

    @property
    def size(self) -> int:
        """The number of workers."""
        return self.communicator.world_size


def join(backend: Backend = "torch", timeout_s: float = ParallelConfig.timeout_s) -> World:
    """Joins the group that the environment describes, once a process, and leaves it at exit.

    torch: `WORLD_SIZE` is set by `distrain`, torchrun and their kin. Without it, or with 1, this
    process works alone; with more it joins a group or fails. Horovod: `HOROVOD_SIZE` and the like
    are set by `distrain` and horovodrun. A group that one backend's launcher has started is no
    other's, so that N separate trainings never happen. A group that the program has joined itself
    is used, and left to it.

    Args:
        timeout_s: So long an exchange waits for the other workers; in a group of the program's own
            that is the program's choice.

    Raises:
        UsageError: the rest of the environment is not there, or it is another backend's.
        ConfigError: Horovod is asked for and is not installed, there is no such backend, or the
            time limit is none.
    """
    check_above_zero("timeout_s", timeout_s)
    if backend == "horovod":
        return _join_horovod()
    if backend != "torch":
        raise ConfigError(f'parallel.backend is {backend!r}; give "torch" or "horovod"')
    size = _world_size(os.environ)
    if not distributed.is_initialized():
        if size == 1:
            _refuse_horovods_workers(os.environ)
            return World(Alone(), _device(local_rank=0))
        missing = [name for name in _RENDEZVOUS if name not in os.environ]
        if missing:
            raise UsageError(
                f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set: start the program by "
                f"`distrain launch --workers {size} SCRIPT` or torchrun, or unset WORLD_SIZE"
            )
        limit = timedelta(seconds=timeout_s)
        try:
            distributed.init_process_group(_backend(), init_method="env://", timeout=limit)
        except RuntimeError as error:
            if _NO_INTERFACE not in str(error):
                raise
            raise UsageError(
                f"{_INTERFACE} is {os.environ.get(_INTERFACE)}, and this machine has no such "
                "network interface, or it has no address: give one that `ip address` shows"
            ) from error
        atexit.register(leave)
        _joined.append(True)
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    communicator = TorchCommunicator(timeout=timedelta(seconds=timeout_s))
    local_size = torch.tensor(
        [int(os.environ.get("LOCAL_WORLD_SIZE", communicator.world_size))], device=device
    )
    sizes = set(communicator.all_gather(local_size).flatten().tolist())
    if len(sizes) == 1:  # of hosts of unlike size none knows where the others begin
        communicator.local_size = sizes.pop()
    return World(communicator, device)


def has_joined() -> bool:
    """Whether there is a group that `join` has joined, and not the program itself."""
    return distributed.is_initialized() and bool(_joined)


def _join_horovod() -> World:
    # Only who asks for Horovod has to have it.
    try:
        import horovod.torch as hvd  # noqa: PLC0415

        from distrain.parallel.horovod_communicator import HorovodCommunicator  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f'parallel.backend is "horovod", and Horovod can\'t be imported here ({error}): '
            'install it by `make horovod`, or set parallel.backend = "torch"'
        ) from error
    if not hvd.is_initialized():
        size = _world_size(os.environ)
        if size > 1 and _HOROVOD_SIZE not in os.environ:
            raise UsageError(
                f'parallel.backend is "horovod", but these {size} workers were started for torch '
                "(WORLD_SIZE is set, HOROVOD_SIZE is not): start them by `distrain train` or "
                f'`horovodrun -np {size} --gloo`, or set parallel.backend = "torch"'
            )
        try:
            hvd.init()
        except ValueError as error:
            raise LostPeerError(f"the workers did not find each other: {error}") from error
        _shut_down.append(hvd.shutdown)
        atexit.register(leave)
    communicator = HorovodCommunicator()
    device = _device(hvd.local_rank())
    return World(Alone() if communicator.world_size == 1 else communicator, device)


def _refuse_horovods_workers(environment: Mapping[str, str]) -> None:
    size = environment.get(_HOROVOD_SIZE, "1")
    if size != "1":
        raise UsageError(
            f'HOROVOD_SIZE is {size}, but parallel.backend is "torch", so these would be {size} '
            'separate trainings: set parallel.backend = "horovod" (Trainer(backend="horovod")), or '
            "start the program by `distrain launch` or torchrun"
        )


def leave() -> None:
    """Leaves the group, if there is one."""
    _joined.clear()
    while _shut_down:
        _shut_down.pop()()
    if distributed.is_initialized():
        distributed.destroy_process_group()
        # A thread of gloo lets go of the last exchange's tensors, for which it needs the
        # interpreter. If that is being taken down by then, the process aborts after all is done
        # (torch 2.13; 1 end of 100 on a busy machine). The pause gives the thread its turn.
        time.sleep(_LAST_TURN_S)


def _world_size(environment: Mapping[str, str]) -> int:
    text = environment.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"WORLD_SIZE is {text!r}; it must be a number of workers from 1 on")
    return int(text)


def _backend() -> str:
    """NCCL where every local worker has a GPU of its own, gloo elsewhere."""
    workers_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    return "nccl" if 0 < workers_here <= torch.cuda.device_count() else "gloo"


def _device(local_rank: int) -> torch.device:
    count = torch.cuda.device_count()
    return torch.device("cuda", local_rank % count) if count else torch.device("cpu")
