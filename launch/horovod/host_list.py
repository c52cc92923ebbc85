"""`--hosts`: where Horovod's workers run, and by which network interfaces they meet."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from distrain.errors import UsageError
from launch.horovod.rules import check_on_hosts

_HOST = re.compile(r"[A-Za-z0-9]([-.A-Za-z0-9]{0,251}[A-Za-z0-9])?")
"""Narrower than what a resolver takes (`launch.machines.node_range`): it comes into shells."""

_INTERFACE = re.compile(r"[A-Za-z0-9][-_.:@A-Za-z0-9]{0,14}")
_FOLDER = re.compile(r"/[-\w/.+,=@]*")


@dataclass(frozen=True)
class Hosts:
    """Where workers run, and by which network interfaces they meet.

    Attributes:
        slots: How many on each host, in the order of their ranks.
        interfaces: Of every host; none leaves it to Horovod to find one.
    """

    slots: tuple[tuple[str, int], ...]
    interfaces: tuple[str, ...] = ()

    @classmethod
    def parse(cls, hosts: str, interfaces: str | None = None) -> Self:
        """From the command line: `HOST:SLOTS,...` and `NAME,...`; horovodrun hands them to shells.

        Raises:
            UsageError: they are no such lists.
        """
        slots = []
        for part in hosts.split(","):
            host, _, number = part.rpartition(":")
            if not _HOST.fullmatch(host) or not re.fullmatch(r"[1-9][0-9]{0,3}", number):
                raise UsageError(
                    f"--hosts has {part[:80]!r}; give HOST:SLOTS,..., such as node1:4,node2:4"
                )
            slots.append((host, int(number)))
        names = [host for host, _ in slots]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--hosts names {name} twice; give it all its slots at once")
        found = () if interfaces is None else tuple(interfaces.split(","))
        for interface in found:
            if not _INTERFACE.fullmatch(interface):
                raise UsageError(
                    f"--network-interfaces has {interface[:80]!r}; give names such as eth0,ib0"
                )
        return cls(tuple(slots), found)

    @property
    def workers(self) -> int:
        """On all hosts together."""
        return sum(number for _, number in self.slots)

    def __str__(self) -> str:
        """As on the command line."""
        return ",".join(f"{host}:{number}" for host, number in self.slots)

    def command(self, launcher: str, folder: Path, arguments: Sequence[str]) -> list[str]:
        """What starts the workers.

        Args:
            launcher: Its process, which horovodrun ends with.
            folder: The one by which launcher and workers tell each other what they have to.
            arguments: Of `launch.worker`.
        """
        interfaces = ["--network-interfaces", ",".join(self.interfaces)] if self.interfaces else []
        return [
            *(sys.executable, "-m", "launch.horovod.horovodrun", launcher, "--gloo"),
            *("-np", str(self.workers), "-H", str(self), *interfaces),
            *(sys.executable, "-m", "launch.horovod.worker", str(folder), *arguments),
        ]

    def variables(self) -> list[dict[str, str]]:
        """By rank, the variables by which Horovod's workers know which one they are."""
        found: list[dict[str, str]] = []
        for host, number in self.slots:
            for at in range(number):
                same_place = [name for name, slots in self.slots if slots > at]
                place = {
                    "HOROVOD_HOSTNAME": host,
                    "HOROVOD_RANK": len(found),
                    "HOROVOD_LOCAL_RANK": at,
                    "HOROVOD_LOCAL_SIZE": number,
                    "HOROVOD_CROSS_RANK": same_place.index(host),
                    "HOROVOD_CROSS_SIZE": len(same_place),
                }
                found.append({name: str(value) for name, value in place.items()})
        return found


def add_host_options(parser: argparse.ArgumentParser, *, backend: str) -> None:
    """The options of a command that can have Horovod's workers on several hosts.

    `backend` is how that command is told of Horovod.
    """
    hosts = parser.add_argument_group(f"several hosts, with {backend}")
    hosts.add_argument(
        "--hosts",
        metavar="HOST:SLOTS,...",
        help="so many workers on each of these; horovodrun reaches them by ssh",
    )
    hosts.add_argument(
        "--network-interfaces",
        metavar="NAME,...",
        help="by which they meet (what Horovod finds)",
    )


def hosts_of(known: argparse.Namespace, backend: str | None = None) -> Hosts | None:
    """What they give; None for this machine alone.

    Raises:
        UsageError: as of `Hosts.parse`; or another option says how many there are.
        ConfigError: `backend`, where it is known, is not Horovod, or Horovod is not there.
    """
    if known.hosts is None:
        if known.network_interfaces is not None:
            raise UsageError("--network-interfaces is for several hosts: give --hosts as well")
        return None
    for option in ("workers", "nodes"):
        if getattr(known, option, None) is not None:
            raise UsageError(f"--hosts says where workers run, and how many: leave --{option} out")
    _check_folder(Path.cwd())
    hosts = Hosts.parse(known.hosts, known.network_interfaces)
    if backend is not None:
        check_on_hosts(backend)
    return hosts


def _check_folder(folder: Path) -> None:
    """Refuses a working directory that is more than a word to a shell: horovodrun pastes it in."""
    if not _FOLDER.fullmatch(str(folder)):
        raise UsageError(
            f"--hosts: the working directory is {str(folder)!r}, which horovodrun would paste into "
            "a shell on each host: start from one of letters, digits and / . _ - + , = @ alone"
        )
