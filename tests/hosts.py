"""Hosts on this machine: network namespaces on one switch, each with names and memory of its own.

    host 0   eth0 10.97.0.1 --+
    host 1   eth0 10.97.0.2 --+-- switch     cut(1) pulls the cable of host 1 out
    host 2   eth0 10.97.0.3 --+

They share this machine's disk, as nodes of a cluster share one.
"""

import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ARE_REQUIRED = "DISTRAIN_REQUIRE_FAULTS"
"""Environment variable: set where nothing may be left out for want of such hosts, as in CI."""

INTERFACE = "eth0"
_BRIDGE = "switch"

_BECOME = """
hostname "$1" && mount --bind "$2" /etc/hosts && mount -t tmpfs -o mode=1777 tmpfs /dev/shm \
&& shift 2 && exec "$@"
"""
"""A shell's words: its host's name, its /etc/hosts, and memory that is lost with it."""


class Hosts:
    """Hosts that are there until the block of `connected_hosts` ends.

    Attributes:
        names_file: Their /etc/hosts.
    """

    def __init__(self, name: str, number: int, folder: Path) -> None:
        """To be made by `connected_hosts`."""
        self._switch = f"{name}-switch"
        self._spaces = [f"{name}-{host}" for host in range(number)]
        self.names_file = folder / "hosts"
        self._names = {f"node-{host}": host for host in range(number)}
        self._write_names()

    def __len__(self) -> int:
        return len(self._spaces)

    @property
    def namespaces(self) -> Sequence[str]:
        """All that have to be deleted."""
        return (*self._spaces, self._switch)

    @staticmethod
    def address(host: int) -> str:
        return f"10.97.0.{host + 1}"

    def connect(self) -> None:
        """Has the switch and all cables made; the namespaces are there."""
        _ip("-n", self._switch, "link", "add", _BRIDGE, "type", "bridge")
        _ip("-n", self._switch, "link", "set", _BRIDGE, "up")
        for host, space in enumerate(self._spaces):
            ends = ("name", INTERFACE, "netns", space, "type", "veth", "peer")
            _ip("link", "add", *ends, "name", _socket(host), "netns", self._switch)
            _ip("-n", self._switch, "link", "set", _socket(host), "master", _BRIDGE, "up")
            address = f"{self.address(host)}/24"
            _ip("-n", space, "address", "add", address, "dev", INTERFACE)
            for device in ("lo", INTERFACE):
                _ip("-n", space, "link", "set", device, "up")

    def on(self, host: int) -> Sequence[str]:
        """The command that starts others there."""
        into = ("ip", "netns", "exec", self._spaces[host], "unshare", "--uts")
        return (*into, "sh", "-c", _BECOME, "sh", f"node-{host}", str(self.names_file))

    def call(self, name: str, host: int) -> None:
        """From now on all know this host by a name, which may have been another's."""
        self._names[name] = host
        self._write_names()

    def _write_names(self) -> None:
        """In place: the file is mounted."""
        lines = [f"{self.address(host)} {name}\n" for name, host in self._names.items()]
        self.names_file.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def cut(self, host: int) -> None:
        """Pulls its cable out."""
        _ip("-n", self._switch, "link", "set", _socket(host), "down")

    def mend(self, host: int) -> None:
        """Puts it in again."""
        _ip("-n", self._switch, "link", "set", _socket(host), "up")


def _socket(host: int) -> str:
    return f"to{host}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@functools.cache
def why_not() -> str:
    """Why there can be no such hosts here; empty where there can, and where there must."""
    if os.environ.get(ARE_REQUIRED):
        return ""
    try:
        with connected_hosts(1) as hosts:
            subprocess.run([*hosts.on(0), "true"], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        return "there is no `ip` command (Debian: iproute2)"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    return ""


@contextmanager
def connected_hosts(number: int) -> Iterator[Hosts]:
    """So many hosts, which can reach each other; gone at the block's end, however it ends."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="distrain-hosts-"))
        name = Path(folder).name
        hosts = Hosts(name, number, Path(folder))
        for space in hosts.namespaces:
            _ip("netns", "add", space)
            stack.callback(_ip, "netns", "delete", space)
        hosts.connect()
        yield hosts
