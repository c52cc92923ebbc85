"""Two hosts on this machine: network namespaces with a link between them that can be cut."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

ADDRESSES = ("10.97.0.1", "10.97.0.2")


@dataclass(frozen=True)
class Hosts:
    """The names of their namespaces."""

    names: tuple[str, str]

    def on(self, host: int) -> Sequence[str]:
        """The command that starts others there."""
        return ("ip", "netns", "exec", self.names[host])

    def cut(self) -> None:
        """Cuts the link."""
        _ip("-n", self.names[1], "link", "set", "wire", "down")

    def mend(self) -> None:
        """Joins it again."""
        _ip("-n", self.names[1], "link", "set", "wire", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def why_not() -> str:
    """Why there can be no such hosts here; empty where there can."""
    name = f"distrain-try-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except FileNotFoundError:
        return "there is no `ip` command"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    return ""


@contextmanager
def linked_hosts() -> Iterator[Hosts]:
    """Two hosts with `ADDRESSES`."""
    names = (f"distrain-a-{os.getpid()}", f"distrain-b-{os.getpid()}")
    for name in names:
        _ip("netns", "add", name)
    try:
        ends = ("name", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire")
        _ip("link", "add", *ends, "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
            for device in ("lo", "wire"):
                _ip("-n", name, "link", "set", device, "up")
        yield Hosts(names)
    finally:
        for name in names:
            _ip("netns", "delete", name)
