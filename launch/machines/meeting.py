"""Where the launchers of several machines meet: one keeps a store there, the others find it.

    --node-rank 0           resolve HOST -> one of its addresses is ours -> listen there
    --node-rank 1, 2, ...   resolve HOST -> connect
    none given              listen where an address of HOST is ours and free, else connect

What fails is tried again, from the name on: in a cluster a machine's name is known only after a
while, and is another address's once the machine was replaced.
"""

import errno
import math
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from torch._C._distributed_c10d import Store, TCPStore

from distrain.errors import ExitCode
from launch.failure import Cause, tell
from launch.machines.node_range import NodeRange, as_address
from launch.machines.store_link import ANSWER_S, within
from launch.rendezvous import listen

TRY_EVERY_S = 0.2
SAY_AFTER_S = 2.0
"""Who waits for longer is told what for."""

PORT_S = 5.0
"""A launcher that is about to end may have the port for so long."""

_CONNECT = timedelta(seconds=3)
_WAIT = timedelta(seconds=60)


@dataclass(frozen=True)
class Met:
    """A way to the store.

    Attributes:
        store: Where the launchers meet.
        address: This machine's, as the others reach it.
        keeps_store: Whether it is kept in this process.
    """

    store: Store
    address: str
    keeps_store: bool


class NotMetError(Exception):
    """There is nobody to meet: `cause` is why, None where the run has ended well."""

    def __init__(self, cause: Cause | None) -> None:
        """Takes the cause."""
        super().__init__("" if cause is None else cause.text)
        self.cause = cause


class _NotYetError(Exception):
    """A try has failed; `patience_s` says for how long others are of use."""

    def __init__(self, text: str, way_out: str, code: ExitCode, patience_s: float) -> None:
        super().__init__(text)
        self.text, self.way_out, self.code, self.patience_s = text, way_out, code, patience_s


def meet(nodes: NodeRange, until: float, look: Callable[[], None], *, again: bool) -> Met:
    """Keeps the store or finds it, as soon as that can be done.

    Args:
        nodes: Where, and whose part it is to keep it.
        until: The end of all patience, on the monotonic clock.
        look: Is called between two tries; may raise.
        again: It was there before, so that its name is known to be one.

    Raises:
        NotMetError: it can't be kept here, or nobody has it.
    """
    began, has_said = time.monotonic(), False
    while True:
        try:
            return _try(nodes, until, again=again)
        except _NotYetError as trouble:
            waited_s = time.monotonic() - began
            if time.monotonic() > until or waited_s > trouble.patience_s:
                raise NotMetError(_cause(trouble, nodes)) from trouble
            if waited_s > SAY_AFTER_S and not has_said:
                has_said = True
                said = f"distrain: {trouble.text}: trying for up to {nodes.join_s:g} s\n"
                tell(said, sys.stderr)
        look()
        time.sleep(TRY_EVERY_S)


def _cause(trouble: _NotYetError, nodes: NodeRange) -> Cause:
    limit_s = min(trouble.patience_s, nodes.join_s)
    tried = f", tried for {limit_s:g} s" if limit_s > 0 else ""
    return Cause(0, trouble.code, f"{trouble.text}{tried}: {trouble.way_out}")


def _try(nodes: NodeRange, until: float, *, again: bool) -> Met:
    addresses = _resolved(nodes, is_sure=again or nodes.node_rank is not None)
    if nodes.node_rank in (None, 0):
        kept = _kept(nodes, addresses)
        if kept is not None:
            return kept
    answer_s = max(TRY_EVERY_S, min(ANSWER_S, until - time.monotonic()))
    return _found(nodes, addresses, answer_s)


def _resolved(nodes: NodeRange, *, is_sure: bool) -> Sequence[str]:
    """The addresses that HOST stands for now."""
    host, what = nodes.host, f"--rendezvous {nodes.place}"
    try:
        found = socket.getaddrinfo(host, nodes.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        # No answer from the name service is trouble of the network; "no such name" is a mistake,
        # unless it is a cluster's, which comes with a machine that may still wait for room.
        is_name = isinstance(error, OSError)
        is_away = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        why = getattr(error, "strerror", "it is no name")
        raise _NotYetError(
            f"{what}: {host} can't be resolved ({why})",
            "give a name or an address of the machine that keeps the rendezvous",
            ExitCode.WORKER_LOST if is_away or (is_sure and is_name) else ExitCode.CONFIG,
            math.inf if is_sure and is_name else 0.0,
        ) from error
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    if any((its := as_address(address)) and its.is_unspecified for address in addresses):
        raise _NotYetError(
            f"{what}: {host} is every address of a machine",
            "give one that its rendezvous is to listen on",
            ExitCode.CONFIG,
            0.0,
        )
    return addresses


def _kept(nodes: NodeRange, addresses: Sequence[str]) -> Met | None:
    """The store, kept here; None where that is another's part."""
    what, is_ours = f"--rendezvous {nodes.place}", False
    for address in addresses:
        try:
            listener = listen(address, nodes.port)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            if error.errno != errno.EADDRINUSE:
                where = f"can't listen on {address}, port {nodes.port}"
                raise _NotYetError(
                    f"{what}: {where} ({error.strerror})",
                    "give a port that this user may listen on",
                    ExitCode.CONFIG,
                    0.0,
                ) from error
            is_ours = True
        else:
            store = TCPStore(
                address,
                nodes.port,
                is_master=True,
                wait_for_workers=False,
                multi_tenant=True,
                timeout=_WAIT,
                master_listen_fd=listener.detach(),
            )
            _warn_of_loopback(nodes.host, address)
            return Met(store, address, keeps_store=True)
    if nodes.node_rank is None:
        return None
    if is_ours:
        raise _NotYetError(
            f"{what}: another program of this machine has port {nodes.port}",
            "--node-rank 0 keeps the rendezvous there: end that program, or give another port",
            ExitCode.CONFIG,
            PORT_S,
        )
    named = "" if addresses == [nodes.host] else f" ({', '.join(addresses)})"
    may_come = bool(named) and as_address(nodes.host) is None  # a name service may lag behind
    raise _NotYetError(
        f"{what}: {nodes.host}{named} is no address of this machine",
        "--node-rank 0 keeps the rendezvous: start it on the machine that has the address, or "
        "give one of this machine",
        ExitCode.WORKER_LOST if may_come else ExitCode.CONFIG,
        math.inf if may_come else 0.0,
    )


def _warn_of_loopback(host: str, address: str) -> None:
    """A machine's own /etc/hosts often has its name there (Debian: 127.0.1.1)."""
    its = as_address(address)
    if its is not None and its.is_loopback and host not in (address, "localhost"):
        tell(
            f"distrain: {host} is {address} here, which no other machine reaches: give "
            "--rendezvous an address of this machine instead\n",
            sys.stderr,
        )


def _found(nodes: NodeRange, addresses: Sequence[str], answer_s: float) -> Met:
    """The store of another launcher."""
    why = ""
    for address in addresses:
        try:
            with socket.create_connection((address, nodes.port), timeout=1.0) as probe:
                own, peer = probe.getsockname(), probe.getpeername()
            if own == peer:  # TCP can connect a port that nobody listens on to itself
                why = "Connection refused"
                continue
            store = within(answer_s, partial(_client, address, nodes.port))
        except TimeoutError:
            why = "no answer"
        except OSError as error:
            why = error.strerror or str(error)
        except RuntimeError:
            why = "what answers is no rendezvous of distrain's"
        else:
            return Met(store, str(own[0]), keeps_store=False)
    numbered = "" if nodes.node_rank is None else " with --node-rank 0"
    raise _NotYetError(
        f"nobody keeps the rendezvous at {nodes.place} ({why})",
        f"is the command running on {nodes.host}{numbered}, and may this machine reach that port?",
        ExitCode.WORKER_LOST,
        math.inf,
    )


def _client(address: str, port: int) -> Store:
    store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_CONNECT)
    store.set_timeout(_WAIT)
    return store
