"""Bytes that a worker writes, cut into whole lines: plain values alone."""

MOST_LINE_BYTES = 1 << 16
"""A line that is longer is cut: what has no line ends must not fill the memory."""


class LineCutter:
    """Takes bytes as they come, gives whole lines."""

    def __init__(self) -> None:
        """Nothing has come yet."""
        self._pending = b""

    def add(self, data: bytes) -> bytes:
        """The lines that are whole by now, each with its newline; the rest stays."""
        whole, newline, rest = data.rpartition(b"\n")
        lines = self._pending + whole + newline if newline else b""
        self._pending = rest if newline else self._pending + rest
        if len(self._pending) > MOST_LINE_BYTES:
            return lines + self.end()
        return lines

    def end(self) -> bytes:
        """What is left, made a line; empty where nothing is."""
        left, self._pending = self._pending, b""
        return left + b"\n" if left else b""

    @property
    def in_place(self) -> bytes | None:
        """An unfinished line that is written over and over, as progress is; None for another."""
        return visible(self._pending) if b"\r" in self._pending else None


def visible(line: bytes) -> bytes:
    r"""What a terminal would show of a line without its newline: what follows its last `\r`."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]


def prefixed(lines: bytes, prefix: bytes) -> bytes:
    """Whole lines as they are shown, each with `prefix` before it."""
    return b"".join(prefix + visible(line) + b"\n" for line in lines[:-1].split(b"\n"))
