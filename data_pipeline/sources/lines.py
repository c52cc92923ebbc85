"""Text files cut at line ends, so that several processes can read one."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError

_BUFFER = 2**22


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a file; the first of its lines, counted from 1, and their number."""

    start: int
    stop: int
    first_line: int
    num_lines: int


def spans(file: Path, size_bytes: int, *, quoted: bool) -> Iterator[Span]:
    """Cuts a file at the first line end behind each `size_bytes`; the last line need not have one.

    With `quoted`, a line end within double quotes ends no line.

    Raises:
        DataError: the file cannot be read, or a quote is never closed.
    """
    try:
        with file.open("rb") as handle:
            start, line, at, lines, open_quote = 0, 1, 0, 0, False
            while content := handle.read(_BUFFER):
                begin = 0
                while at + len(content) - start >= size_bytes:
                    end = _line_end(
                        content, max(begin, start + size_bytes - at), begin, open_quote, quoted
                    )
                    if end < 0:
                        break
                    lines += content.count(b"\n", begin, end)
                    yield Span(start, at + end, line, lines)
                    start, line, lines, begin, open_quote = at + end, line + lines, 0, end, False
                lines += content.count(b"\n", begin)
                open_quote ^= quoted and content.count(b'"', begin) % 2 == 1
                at += len(content)
                last = content
            if open_quote:
                raise DataError(
                    f"{file}: a double quote that opens in line {line} or behind it is never "
                    "closed; close it, or write a quote within a value twice, in quotes"
                )
            if at > start:
                yield Span(start, at, line, lines + (not last.endswith(b"\n")))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def _line_end(content: bytes, at_least: int, begin: int, open_quote: bool, quoted: bool) -> int:
    """The place behind the first line end from `at_least` on that is within no quotes, or -1."""
    place = at_least
    inside = open_quote ^ (content.count(b'"', begin, place) % 2 == 1)
    while (end := content.find(b"\n", place)) >= 0:
        if not quoted:
            return end + 1
        inside ^= content.count(b'"', place, end) % 2 == 1
        if not inside:
            return end + 1
        place = end + 1
    return -1
