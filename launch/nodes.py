"""Several machines, one run: where their launchers meet, and how they learn that it has ended.

first launcher on HOST             others
listens on PORT, keeps the store   connect to it
          \\           rendezvous           /
           workers of all machines, one group
"""

import errno
import fcntl
import json
import os
import socket
import struct
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta

from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousTimeout

from distrain.coordinator.generation import HAS_STEPPED, LAUNCH
from distrain.coordinator.stops import BEGAN
from distrain.errors import ConfigError, ExitCode
from launch.failure import Cause
from launch.node_range import JOIN_S, NodeRange
from launch.rendezvous import BoundRendezvous, listen
from launch.rendezvous_state import JsonBackend, StoreLink

LAST_CALL_S = 2.0
"""Once MIN are there, others may join the same start for so long: they look every second."""

KEEP_ALIVE_S, KEEP_ALIVES = 1, 5
"""A machine that has said nothing for 5 s is lost."""

LINGER_S = 3.0
"""The machine that keeps the store waits so long for the others to have read how the run ended."""

STACKS_S = 5.0
"""So long a machine whose worker hangs waits for the others to keep the stacks of theirs."""

_TRY_EVERY_S, _WAIT = 0.2, timedelta(seconds=60)
_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
_PREFIX = "distrain/"
_LAUNCH, _STEPPED, _ENDED = _PREFIX + "launch", _PREFIX + "stepped", _PREFIX + "ended"
_JOINED, _LEFT = _PREFIX + "joined", _PREFIX + "left"
_HANGS, _STACKS = _PREFIX + "hangs", _PREFIX + "stacks"


class Rendezvous(BoundRendezvous):
    """Says itself when machines have come or gone: torch's agent would end workers unsaved."""

    def num_nodes_waiting(self) -> int:
        """None that torch's agent has to know of."""
        return 0

    def have_come(self) -> bool:
        """Whether machines wait to take part.

        Raises:
            RendezvousConnectionError: nobody can say.
        """
        return super().num_nodes_waiting() > 0

    @property
    def machines(self) -> int:
        """How many take part, as far as was read last."""
        return len(self._state_holder.state.participants)

    def has_lost_any(self, machines: int) -> bool:
        """Whether fewer are there than this start has had, as far as was read last."""
        participants = self._state_holder.state.participants
        return self._this_node not in participants or self.machines < machines


class Nodes:
    """This machine's link to the others.

    Attributes:
        rendezvous: Torch elastic's, over the store that one of the machines keeps.
        address: This machine's, as the others reach it.
        launch: A name of this launch, the same on all machines.
    """

    def __init__(self, nodes: NodeRange) -> None:
        """Meets the others, or is the first.

        Raises:
            ConfigError: HOST has no address.
            RendezvousTimeoutError: nobody answers there.
        """
        self._nodes = nodes
        store, self.address, self._keeps_store = _meet(nodes)
        self._link = StoreLink(store)
        self._call = self._link.call
        own = os.environ[BEGAN]
        self.launch = self._call(lambda store: store.compare_set(_LAUNCH, "", own)).decode()
        self._has_told_step = False
        self._hangs = self._counted(_HANGS)
        self._counted(_JOINED, 1)
        self.rendezvous: Rendezvous = Rendezvous.from_backend(
            "distrain",
            store,
            JsonBackend(self._link),
            nodes.least,
            nodes.most,
            local_addr=self.address,
            timeout=RendezvousTimeout(
                join=timedelta(seconds=JOIN_S),
                last_call=timedelta(seconds=LAST_CALL_S),
                close=timedelta(seconds=LINGER_S),
            ),
            keep_alive_interval=KEEP_ALIVE_S,
            keep_alive_max_attempt=KEEP_ALIVES,
        )

    def variables(self) -> dict[str, str]:
        """What its workers need to reach the others'.

        Raises:
            RendezvousConnectionError: the store is lost.
        """
        interface = interface_of(self.address)
        told = {LAUNCH: self.launch}
        if interface is not None and _INTERFACE not in os.environ:
            told[_INTERFACE] = interface
        if self._call(lambda store: store.check([_STEPPED])):
            told[HAS_STEPPED] = "1"
        return told

    def note_step(self) -> None:
        """A step is done: from now on a machine that comes later must find the run's folder."""
        if not self._has_told_step:
            self._call(lambda store: store.set(_STEPPED, "1"))
            self._has_told_step = True

    def _counted(self, what: str, more: int = 0) -> int:
        return self._call(lambda store: store.add(what, more))

    def ask_for_stacks(self) -> None:
        """A worker hangs here: waits until the others have kept the stacks of theirs."""
        others = self.rendezvous.machines - 1
        with suppress(RendezvousError):
            wanted = self._counted(_STACKS) + others
            self._hangs = self._counted(_HANGS, 1)
            end = time.monotonic() + STACKS_S
            while self._counted(_STACKS) < wanted and time.monotonic() < end:
                time.sleep(0.05)

    def wants_stacks(self) -> bool:
        """Whether a worker of another machine hangs, and ours are to leave their stacks.

        Raises:
            RendezvousConnectionError: the store is lost.
        """
        before, self._hangs = self._hangs, self._counted(_HANGS)
        return self._hangs > before

    def left_stacks(self) -> None:
        """They have.

        Raises:
            RendezvousConnectionError: the store is lost.
        """
        self._counted(_STACKS, 1)

    def end(self, cause: Cause | None) -> None:
        """Tells all machines how the run ended; the first to say so counts."""
        text = json.dumps(None if cause is None else asdict(cause))
        with suppress(RendezvousError):
            self._call(lambda store: store.compare_set(_ENDED, "", text))
            self.rendezvous.shutdown()

    def ended(self) -> Cause | None:
        """How the run ended, where another machine has ended it; None where that was well."""
        place = self._nodes.place
        try:
            if not self._call(lambda store: store.check([_ENDED])):
                return Cause(0, ExitCode.WORKER_LOST, f"the rendezvous at {place} was closed")
            told = json.loads(self._call(lambda store: store.get(_ENDED)))
        except RendezvousConnectionError:
            return self.lost()
        return None if told is None else Cause(**told)

    def lost(self) -> Cause:
        """The cause where the store can't be reached any more."""
        return Cause(
            0,
            ExitCode.WORKER_LOST,
            f"the machine that keeps the rendezvous at {self._nodes.place} is lost, or can't be "
            "reached: run the same command again on all machines, to go on from the last "
            "checkpoint",
        )

    def left_by_one(self) -> Cause:
        """The cause where a machine, and its workers with it, is no longer part of this start."""
        silent = f"it has said nothing for {KEEP_ALIVE_S * KEEP_ALIVES} s"
        said = f"a machine has left: its workers start again, or it is lost ({silent})"
        return Cause(0, ExitCode.WORKER_LOST, said)

    def too_few(self) -> Cause:
        """The cause where not enough machines have come."""
        return self._nodes.too_few()

    def leave(self) -> None:
        """Goes; who keeps the store waits a moment for the others."""
        self.rendezvous._stop_heartbeats()
        end = time.monotonic() + LINGER_S
        with suppress(RendezvousError):
            left = self._counted(_LEFT, 1)
            while self._keeps_store and time.monotonic() < end:
                if left >= self._counted(_JOINED):
                    return
                time.sleep(0.05)
                left = self._counted(_LEFT)


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address; None where none says so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                told = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(told[20:24]) == address:
                    return name
    return None


def _meet(nodes: NodeRange) -> tuple[Store, str, bool]:
    """The store, this machine's address, and whether the store is kept here."""
    try:
        found = socket.getaddrinfo(nodes.host, nodes.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--rendezvous {nodes.place}: {nodes.host}: {error.strerror}") from error
    for *_, place in found:
        address = str(place[0])
        try:
            listener = listen(address, nodes.port)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                continue  # another machine's, or another launcher of this one was first
            raise ConfigError(f"--rendezvous {nodes.place}: {error.strerror}") from error
        store = TCPStore(
            address,
            nodes.port,
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            timeout=_WAIT,
            master_listen_fd=listener.detach(),
        )
        return store, address, True
    end = time.monotonic() + JOIN_S
    while True:
        try:
            with socket.create_connection((nodes.host, nodes.port), timeout=1.0) as probe:
                own, (address, *_) = str(probe.getsockname()[0]), probe.getpeername()
            store = TCPStore(
                address, nodes.port, is_master=False, wait_for_workers=False, timeout=_WAIT
            )
        except (OSError, RuntimeError) as error:
            if time.monotonic() > end:
                raise RendezvousTimeoutError(str(error)) from error
            time.sleep(_TRY_EVERY_S)
        else:
            return store, own, False
