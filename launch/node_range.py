"""How many machines a run may have, and where their launchers meet; read without torch."""

from dataclasses import dataclass
from typing import Self

from distrain.errors import ExitCode, UsageError
from launch.failure import Cause
from launch.number_range import NumberRange

JOIN_S = 600.0
"""So long MIN machines are waited for."""

STORE_THREAD = "distrain-store"
"""The name of the thread that asks the store where they meet."""


@dataclass(frozen=True)
class NodeRange:
    """How many machines there may be, and where they meet."""

    least: int
    most: int
    host: str
    port: int

    @classmethod
    def parse(cls, nodes: str, rendezvous: str | None) -> Self:
        """From the command line.

        Raises:
            UsageError: it is no range, or there is no place to meet.
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
        return cls(numbers.least, numbers.most, host.strip("[]"), int(port))

    @property
    def place(self) -> str:
        """Where they meet, for a person."""
        return f"{self.host}:{self.port}"

    def too_few(self) -> Cause:
        """The cause where not enough machines have come."""
        return Cause(
            0,
            ExitCode.WORKER_LOST,
            f"fewer than {self.least} machines came to {self.place} within {JOIN_S:g} s: start the "
            "others, or give --nodes a smaller MIN",
        )

    def nobody_there(self) -> Cause:
        """The cause where the machine that is to keep the rendezvous does not answer."""
        return Cause(
            0,
            ExitCode.WORKER_LOST,
            f"nobody answered at {self.place} within {JOIN_S:g} s: is the command running on "
            f"{self.host}, and may this machine reach that port?",
        )
