"""Text files cut at line ends, so that several processes can read one."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError

_BUFFER = 2**22

_MARK = b"\xef\xbb\xbf"
"""May stand at the start of a file in UTF-8."""


@dataclass(frozen=True)
class Span:
    """Bytes [start, stop) of a file; the first of its lines, counted from 1, and their number."""

    start: int
    stop: int
    first_line: int
    num_lines: int


def spans(file: Path, size_bytes: int, *, quoted: bool) -> Iterator[Span]:
    """Cuts a file at the first line end behind each `size_bytes`; the last line need not have one.

    With `quoted`, a line end within double quotes ends no line. As pyarrow reads it, a quote opens
    only at the start of a value, and a quote written twice within quotes is one of the value.

    Raises:
        DataError: the file cannot be read, a quote is never closed, or its lines end with CR.
    """
    quotes = _Quotes(delimiter_of(file)) if quoted else None
    try:
        with file.open("rb") as handle:
            start, line, at, lines = 0, 1, 0, 0
            last, any_return = b"\n", False
            while content := handle.read(_BUFFER):
                # Whether a quote closes its value is known by what stands behind it.
                while content.endswith(b'"') and (more := handle.read(4_096)):
                    content += more
                within = [] if quotes is None else quotes.line_ends_within(content, last)
                begin = 0
                while at + len(content) - start >= size_bytes:
                    end = _line_end(content, max(begin, start + size_bytes - at), within)
                    if end < 0:
                        break
                    lines += content.count(b"\n", begin, end)
                    yield Span(start, at + end, line, lines)
                    start, line, lines, begin = at + end, line + lines, 0, end
                lines += content.count(b"\n", begin)
                if line + lines == 1 and quotes is not None:
                    any_return = any_return or _line_end(content, 0, within, b"\r") >= 0
                at += len(content)
                last = content[-1:]
            if quotes is not None:
                _check_end(file, quotes, line, any_return=any_return and line + lines == 1)
            if at > start:
                yield Span(start, at, line, lines + (last != b"\n"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error


def content_of(file: Path, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file, without the mark that may stand at its start.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with file.open("rb") as handle:
            handle.seek(start)
            content = handle.read(stop - start)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    return content if start else content.removeprefix(_MARK)


def behind_first_line(content: bytes, delimiter: str) -> bytes:
    """What stands behind a file's first line, whose values may hold line ends within quotes."""
    within = _Quotes(delimiter).line_ends_within(content, b"\n")
    end = _line_end(content, 0, within)
    return b"" if end < 0 else content[end:]


def delimiter_of(file: Path) -> str:
    """What stands between the values of a line."""
    return "," if file.suffix.lower() == ".csv" else "\t"


def _check_end(file: Path, quotes: "_Quotes", line: int, *, any_return: bool) -> None:
    if any_return:
        raise DataError(
            f"{file} ends its lines with CR (\\r) alone, not with LF (\\n) or CRLF (\\r\\n): write "
            "it anew with one of these, as `tr '\\r' '\\n'` does"
        )
    if quotes.is_open:
        raise DataError(
            f"{file}: a double quote that opens in line {line} or behind it is never "
            "closed; close it, or write a quote within a value twice, in quotes"
        )


class _Quotes:
    """Follows the quoted values of a file from buffer to buffer."""

    def __init__(self, delimiter: str) -> None:
        rest = rb'(?:[^"]++|"")*+("|\Z)'
        self._rest = re.compile(rest)
        self._value = re.compile(rb'"(?<=[%b\r\n]")%b' % (re.escape(delimiter.encode()), rest))
        self._is_first = True
        self.is_open = False

    def line_ends_within(self, content: bytes, before: bytes) -> list[tuple[int, int]]:
        """Where the quoted values of a buffer lie that hold line ends.

        `before` is the byte in front of it, a line end at the start of the file. A buffer that
        ends with a quote must be the file's last one.
        """
        is_first, self._is_first = self._is_first, False
        if b'"' not in content:
            return [(0, len(content))] if self.is_open else []
        text = before + content
        if is_first and content.startswith(_MARK):
            text = before.rjust(1 + len(_MARK)) + content[len(_MARK) :]
        found: list[tuple[int, int]] = []
        place = 1
        if self.is_open:
            value = self._rest.match(text, place)
            assert value is not None  # the end of the buffer does as well
            place = self._note(value, found)
        for value in self._value.finditer(text, place):
            self._note(value, found)
        return found

    def _note(self, value: re.Match[bytes], found: list[tuple[int, int]]) -> int:
        start, stop = value.span()
        self.is_open = value[1] == b""
        if b"\n" in value[0] or b"\r" in value[0]:
            found.append((start - 1, stop - 1))
        return stop


def _line_end(
    content: bytes, at_least: int, within: list[tuple[int, int]], sign: bytes = b"\n"
) -> int:
    """The place behind the first line end from `at_least` on that is in none of `within`, or -1."""
    place = at_least
    while (end := content.find(sign, place)) >= 0:
        number = bisect_right(within, end, key=lambda span: span[0]) - 1
        if number < 0 or within[number][1] <= end:
            return end + 1
        place = within[number][1]
    return -1
