"""How many machines a run may have, and where their launchers meet; read without torch."""

import argparse
import ipaddress
import math
import re
from dataclasses import dataclass
from typing import Self

from distrain.errors import ExitCode, UsageError
from launch.failure import Cause
from launch.number_range import NumberRange

JOIN_S = 600.0
"""So long MIN machines are waited for, and the one that keeps the rendezvous."""

_LABEL = r"[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?")
"""What resolvers take: with underscores, which a cluster's name (`launch.job_spec`) can't have."""

STORE_THREAD = "distrain-store"
"""The name of the threads that ask the store where they meet."""


@dataclass(frozen=True)
class NodeRange:
    """How many machines there may be, and where they meet.

    Attributes:
        least: The run starts, and goes on, with so many.
        most: More than these wait as spares.
        host: A name or an address of the machine that keeps the rendezvous.
        port: Where it listens.
        node_rank: This machine's; 0 keeps the rendezvous. None for whichever has the address.
        join_s: After so many seconds that machine, and MIN of them, are waited for no more.
    """

    least: int
    most: int
    host: str
    port: int
    node_rank: int | None = None
    join_s: float = JOIN_S

    @classmethod
    def parse(
        cls,
        nodes: str,
        rendezvous: str | None,
        node_rank: int | None = None,
        join_s: float | None = None,
    ) -> Self:
        """From the command line.

        Raises:
            UsageError: it is no range, there is no place to meet, or a number is out of its range.
        """
        numbers = NumberRange.parse("--nodes", nodes)
        if rendezvous is None:
            raise UsageError(
                f"--nodes {nodes} needs --rendezvous HOST:PORT, the same on all machines; HOST is "
                "one of them"
            )
        host, _, port = rendezvous.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"--rendezvous is {rendezvous!r}; give HOST:PORT")
        host = host.strip("[]")
        address = as_address(host)
        if address is None and not _HOST.fullmatch(host):
            raise UsageError(
                f"--rendezvous is {rendezvous[:80]!r}; give HOST:PORT, a name or an address of the "
                "machine that keeps it"
            )
        if address is not None and address.is_unspecified:
            raise UsageError(
                f"--rendezvous is {rendezvous!r}, which is every address: give one of the machine "
                "that keeps it, since it listens on that alone"
            )
        if node_rank is not None and node_rank < 0:
            raise UsageError(f"--node-rank is {node_rank}; give 0 or more")
        join_s = JOIN_S if join_s is None else join_s
        if not 0 < join_s < math.inf:
            raise UsageError(f"--join-timeout is {join_s:g}; give seconds, more than 0")
        return cls(numbers.least, numbers.most, host, int(port), node_rank, join_s)

    @property
    def place(self) -> str:
        """Where they meet, for a person."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def too_few(self) -> Cause:
        """The cause where not enough machines have come."""
        return Cause(
            0,
            ExitCode.WORKER_LOST,
            f"fewer than {self.least} machines came to {self.place} within {self.join_s:g} s: "
            "start the others, or give --nodes a smaller MIN",
        )


def as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host is given by; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that can run on several machines."""
    machines = parser.add_argument_group("several machines (the same command on each)")
    machines.add_argument(
        "--nodes",
        metavar="N|MIN:MAX",
        help="how many machines there may be, with --workers of each; needs --rendezvous",
    )
    machines.add_argument(
        "--rendezvous",
        metavar="HOST:PORT",
        help="where they meet: one of them, and a port that is free there",
    )
    machines.add_argument(
        "--node-rank",
        type=int,
        metavar="K",
        help="this machine's number: 0 keeps the rendezvous, and the least that is there has rank "
        "0 (without: who has HOST's address keeps it)",
    )
    machines.add_argument(
        "--join-timeout",
        type=float,
        metavar="S",
        help=f"wait so many seconds for HOST, and for MIN machines ({JOIN_S:g})",
    )


def nodes_of(known: argparse.Namespace) -> NodeRange | None:
    """What they give; None for this machine alone.

    Raises:
        UsageError: as of `NodeRange.parse`; or one that is for several machines stands alone.
    """
    if known.nodes is not None:
        return NodeRange.parse(known.nodes, known.rendezvous, known.node_rank, known.join_timeout)
    for option in ("rendezvous", "node_rank", "join_timeout"):
        if getattr(known, option) is not None:
            name = option.replace("_", "-")
            raise UsageError(f"--{name} is for several machines: give --nodes MIN:MAX as well")
    return None
