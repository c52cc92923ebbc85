"""What one worker has written in one start: a file, and its last lines."""

import os
import sys
from collections import deque
from pathlib import Path

from launch.failure import tell
from launch.output.output_lines import visible

LAST_LINES = 30

MOST_ASIDE_BYTES = 1 << 20
"""So much of what comes before there is a place for the file is kept in memory."""


class WorkerLog:
    """Takes whole lines; a disk that is full, or a folder that is gone, is told once.

    Attributes:
        last: The last lines, as a terminal would show them.
        path: The file; None as long as there is no place for it.
    """

    def __init__(self) -> None:
        """Begins in memory."""
        self.last: deque[bytes] = deque(maxlen=LAST_LINES)
        self.path: Path | None = None
        self._aside = bytearray()
        self._file: int | None = None
        self._left_out = 0
        self._has_told = False

    def add(self, lines: bytes) -> None:
        """Keeps lines, the last of which ends with a newline as well."""
        newest = lines[:-1].rsplit(b"\n", LAST_LINES)[-LAST_LINES:]
        self.last.extend(visible(line) for line in newest)
        if self.path is not None:
            self._write(lines)
        elif len(self._aside) + len(lines) <= MOST_ASIDE_BYTES:
            self._aside += lines
        else:
            self._left_out += len(lines)

    def move_to(self, path: Path) -> None:
        """There is a place now: what has come is written, and what comes will be."""
        self.path = path
        if self._left_out:
            said = f"distrain: {self._left_out:,} bytes after this, before the run began, are lost"
            self._aside += f"{said}\n".encode()
        if self._aside:
            self._write(self._aside)
        self._aside = bytearray()

    def close(self) -> None:
        """No more will come."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, lines: bytes | bytearray) -> None:
        """Makes the file with the first line: a worker that writes nothing leaves none."""
        assert self.path is not None
        try:
            if self._file is None:
                self.path.parent.mkdir(exist_ok=True)
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self.path, flags, 0o644)
            left = memoryview(lines)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            if not self._has_told:
                self._has_told = True
                said = f"{self.path} cannot be written: {error.strerror}; training goes on"
                tell(f"distrain: {said}\n", sys.stderr)
