"""Several machines, one run: where their launchers meet, and how they learn that it has ended.

first launcher on HOST             others
listens on PORT, keeps the store   connect to it
          \\           rendezvous           /
           workers of all machines, one group
"""

import fcntl
import json
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Self

from torch._C._distributed_c10d import Store
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousError,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    RendezvousSettings,
    RendezvousTimeout,
    _BackendRendezvousStateHolder,
)

from distrain.coordinator.generation import HAS_STEPPED, LAUNCH, NAMES_SEPARATOR
from distrain.coordinator.stops import BEGAN
from distrain.errors import ExitCode
from launch.failure import Cause, tell
from launch.machines.meeting import Met, NotMetError, meet
from launch.machines.node_range import NodeRange
from launch.machines.rendezvous_state import JsonBackend, Node
from launch.machines.run_end import RunEnd, end_in
from launch.machines.store_link import StoreLink
from launch.rendezvous import BoundRendezvous

LAST_CALL_S = 2.0
"""Once MIN are there, others may join the same start for so long: they look every second."""

KEEP_ALIVE_S, KEEP_ALIVES = 1, 5
"""A machine that has said nothing for 5 s is lost."""

LINGER_S = 3.0
"""The machine that keeps the store waits so long for the others to have read how the run ended."""

STACKS_S = 5.0
"""So long a machine whose worker hangs waits for the others to keep the stacks of theirs."""

_INTERFACE = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915
_PREFIX = "distrain/"
_LAUNCH, _BEFORE, _STEPPED = _PREFIX + "launch", _PREFIX + "before", _PREFIX + "stepped"
_ENDED, _DONE = _PREFIX + "ended", _PREFIX + "done"
_JOINED, _LEFT = _PREFIX + "joined", _PREFIX + "left"
_HANGS, _STACKS = _PREFIX + "hangs", _PREFIX + "stacks"


class Rendezvous(BoundRendezvous):
    """Says itself when machines have come or gone: torch's agent would end workers unsaved."""

    @classmethod
    def among(cls, nodes: NodeRange, link: StoreLink, store: Store, address: str) -> Self:
        """Of the machines that use this store; `address` is this one's."""
        unranked = cls._node_desc_generator.generate(address)
        node = Node(unranked.addr, unranked.pid, unranked.local_id, nodes.node_rank)
        settings = RendezvousSettings(
            "distrain",
            nodes.least,
            nodes.most,
            RendezvousTimeout(
                join=timedelta(seconds=nodes.join_s),
                last_call=timedelta(seconds=LAST_CALL_S),
                close=timedelta(seconds=LINGER_S),
            ),
            keep_alive_interval=timedelta(seconds=KEEP_ALIVE_S),
            keep_alive_max_attempt=KEEP_ALIVES,
        )
        backend = JsonBackend(link)
        holder = _BackendRendezvousStateHolder(backend, settings)
        return cls(node, settings, backend.name, store, holder)

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

    What a launch is known by outlives the store: who was in it tells the next one, which may be
    that of a machine that was replaced and knows nothing.

    Attributes:
        rendezvous: Torch elastic's, over the store that one of the machines keeps.
        address: This machine's, as the others reach it.
        launch: A name of this launch, the same on all machines; empty until they have met.
    """

    rendezvous: Rendezvous
    address: str

    def __init__(self, nodes: NodeRange, run: Path | None) -> None:
        """Meets the others, or is the first; `run` is the run's folder, where it is known.

        Raises:
            NotMetError: that can't be.
        """
        self._nodes, self._run = nodes, run
        self.launch, self._first_start, self._next_start = "", 0, 0
        self._stepped: set[str] = set()
        until = time.monotonic() + nodes.join_s
        while True:
            try:
                self._open(meet(nodes, until, lambda: None, again=False))
            except RendezvousConnectionError:  # it was lost again at once
                if time.monotonic() > until:
                    raise NotMetError(self.lost()) from None
            else:
                return

    def _open(self, met: Met) -> None:
        """Tells the store what is known here of the launch, and learns what others know."""
        self._met, self.address = met, met.address
        self._link = StoreLink(met.store)
        self._call = self._link.call
        if self.launch:
            before = json.dumps([self.launch, self._next_start])
            self._call(lambda store: store.compare_set(_BEFORE, "", before))
            for name in self._stepped:
                self._tell_stepped(name)
        elif self._call(lambda store: store.check([_LAUNCH])):
            self._learn(self._call(lambda store: store.get(_LAUNCH)))
        self._learn_stepped()
        self._hangs = self._counted(_HANGS)
        self._counted(_JOINED, 1)
        self.rendezvous = Rendezvous.among(self._nodes, self._link, met.store, met.address)

    def meet_again(self) -> None:
        """Where the store is lost: meets the others at the next one, which may be elsewhere.

        Raises:
            NotMetError: it did not come again, or the run has ended meanwhile.
            RendezvousConnectionError: it is lost again already.
        """
        if not self._link.is_lost:
            return
        self._next_start = max(self._next_start, self.start + 1)
        self.rendezvous._stop_heartbeats()
        if self._met.keeps_store:  # it was this machine that did not get to answer in time
            self._open(self._met)
            return
        tell(
            f"distrain: {self._lost}: it is waited for, for up to {self._nodes.join_s:g} s\n",
            sys.stderr,
        )
        until = time.monotonic() + self._nodes.join_s
        self._open(meet(self._nodes, until, self._look_for_the_end, again=True))

    def _look_for_the_end(self) -> None:
        end = self._end_in_folder()
        if end is not None:
            raise NotMetError(end.cause)

    def _end_in_folder(self) -> RunEnd | None:
        return None if self._run is None else end_in(self._run, self.launch)

    @property
    def start(self) -> int:
        """Which start of the launch this is, from 0: the same on all machines."""
        return self._first_start + self.rendezvous.start

    @property
    def join_s(self) -> float:
        """After so many seconds others are waited for no more."""
        return self._nodes.join_s

    def variables(self) -> dict[str, str]:
        """What its workers need to reach the others', once they have met.

        Raises:
            RendezvousConnectionError: the store is lost.
        """
        # All who take part have told by now what they know of a store before this one.
        name = json.dumps([os.environ[BEGAN], 0])
        if self._call(lambda store: store.check([_BEFORE])):
            name = self._call(lambda store: store.get(_BEFORE)).decode()
        self._learn(self._call(lambda store: store.compare_set(_LAUNCH, "", name)))
        self._learn_stepped()
        interface = interface_of(self.address)
        told = {LAUNCH: self.launch}
        if interface is not None and _INTERFACE not in os.environ:
            told[_INTERFACE] = interface
        if self._stepped:
            told[HAS_STEPPED] = NAMES_SEPARATOR.join(sorted(self._stepped))
        return told

    def _learn(self, told: bytes) -> None:
        name, first_start = json.loads(told)
        self.launch, self._first_start = str(name), int(first_start)

    def _learn_stepped(self) -> None:
        if self._call(lambda store: store.check([_STEPPED])):
            told = self._call(lambda store: store.get(_STEPPED)).decode()
            self._stepped.update(told.split(NAMES_SEPARATOR))

    def _tell_stepped(self, name: str) -> None:
        def add(store: Store) -> None:
            told = store.compare_set(_STEPPED, "", name).decode()
            while name not in told.split(NAMES_SEPARATOR):
                told = store.compare_set(_STEPPED, told, told + NAMES_SEPARATOR + name).decode()

        self._call(add)

    def note_step(self) -> None:
        """A step is done: from now on a machine that comes later must find the run's folder.

        Raises:
            RendezvousConnectionError: the store is lost; the next one will be told.
        """
        if self.launch not in self._stepped:
            self._stepped.add(self.launch)
            self._tell_stepped(self.launch)

    def note_done(self) -> None:
        """This machine's workers have done all of their work in this start.

        Raises:
            RendezvousConnectionError: the store is lost.
        """
        self._counted(self._done, 1)

    def are_all_done(self) -> bool:
        """Whether those of all machines have.

        Raises:
            RendezvousConnectionError: the store is lost.
        """
        return self._counted(self._done) >= self.rendezvous.machines

    @property
    def _done(self) -> str:
        return f"{_DONE}/{self.rendezvous.start}"

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

    def cause_of(self, error: RendezvousError) -> Cause | None:
        """The cause where the launchers meet no more; None where the run has ended well."""
        if isinstance(error, RendezvousTimeoutError):
            return self._nodes.too_few()
        return self.lost() if isinstance(error, RendezvousConnectionError) else self.ended()

    def ended(self) -> Cause | None:
        """How the run ended, where another machine has ended it; None where that was well."""
        place = self._nodes.place
        try:
            if not self._call(lambda store: store.check([_ENDED])):
                return Cause(0, ExitCode.WORKER_LOST, f"the rendezvous at {place} was closed")
            told = json.loads(self._call(lambda store: store.get(_ENDED)))
        except RendezvousConnectionError:
            end = self._end_in_folder()
            return self.lost() if end is None else end.cause
        return None if told is None else Cause(**told)

    @property
    def _lost(self) -> str:
        place = self._nodes.place
        return f"the machine that keeps the rendezvous at {place} is lost, or can't be reached"

    def lost(self) -> Cause:
        """The cause where the store can't be reached any more."""
        way_out = "run the same command again on all machines, to go on from the last checkpoint"
        return Cause(0, ExitCode.WORKER_LOST, f"{self._lost}: {way_out}")

    def left_by_one(self) -> Cause:
        """The cause where a machine, and its workers with it, is no longer part of this start."""
        silent = f"it has said nothing for {KEEP_ALIVE_S * KEEP_ALIVES} s"
        said = f"a machine has left: its workers start again, or it is lost ({silent})"
        return Cause(0, ExitCode.WORKER_LOST, said)

    def leave(self) -> None:
        """Goes; who keeps the store waits a moment for the others."""
        self.rendezvous._stop_heartbeats()
        end = time.monotonic() + LINGER_S
        with suppress(RendezvousError):
            left = self._counted(_LEFT, 1)
            while self._met.keeps_store and time.monotonic() < end:
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
