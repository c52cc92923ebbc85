"""The launcher's own standard output or standard error, as workers' lines are shown on it."""

import os
import select
from contextlib import suppress
from typing import TextIO

from rich.console import Console
from rich.text import Text

from launch.output.output_lines import prefixed

_COLORS = ("cyan", "green", "yellow", "magenta", "blue")

_ERASE_LINE = b"\r\x1b[2K"


class Screen:
    """Writes whole lines, each in the place of a bar that a worker may have drawn there.

    Where nobody reads any more (`| head`), or the disk under it is full, workers go on unseen.
    """

    def __init__(self, stream: TextIO, *, with_ranks: bool) -> None:
        """`with_ranks` is for output of several workers: `[rank N]` stands before each line."""
        stream.flush()
        self._descriptor = stream.fileno()
        self._console = Console(file=stream)
        has_place = os.isatty(self._descriptor) and not self._console.is_dumb_terminal
        self._erase = _ERASE_LINE if has_place else b""
        self._with_ranks = with_ranks
        self._prefixes: dict[int, bytes] = {}

    def show(self, rank: int, lines: bytes, in_place: bytes | None) -> None:
        """Shows lines of a worker, and what it writes over and over where that is a terminal.

        Args:
            rank: The worker's.
            lines: Each with its newline; may be empty.
            in_place: The line that is not at its end yet.
        """
        prefix = self._prefix(rank)
        if not lines and (in_place is None or not self._erase):
            return
        shown = prefixed(lines, prefix) if lines else b""
        if in_place is not None and self._erase:
            room = max(0, self._console.width - len(f"[rank {rank}] ") - 1)
            shown += prefix + in_place.decode(errors="replace")[:room].encode()
        self._write(self._erase + shown)

    def _prefix(self, rank: int) -> bytes:
        """Coloured where the terminal can: rich knows NO_COLOR, dumb terminals and the rest."""
        if not self._with_ranks:
            return b""
        if rank not in self._prefixes:
            with self._console.capture() as written:
                name = Text(f"[rank {rank}]", style=_COLORS[rank % len(_COLORS)])
                self._console.print(name, end=" ")
            self._prefixes[rank] = written.get().encode()
        return self._prefixes[rank]

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        with suppress(OSError):
            while left:
                try:
                    left = left[os.write(self._descriptor, left) :]
                except BlockingIOError:  # who has started this has made it so
                    select.select([], [self._descriptor], [])
