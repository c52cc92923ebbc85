"""The terminal that a worker draws on, where what it writes goes through its launcher.

The launcher reads whole lines from a pipe; a bar that is drawn again and again is none. Each line
that the launcher shows takes the place of the bar, which is drawn anew below it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

_terminal: list[int] = []


def draw_on(descriptor: int) -> None:
    """From now on progress is drawn on this terminal."""
    _terminal[:] = [descriptor]


def drawn_on() -> int | None:
    """Its descriptor; None where there is standard output alone."""
    return _terminal[0] if _terminal else None


def lasting(stream: IO[str]) -> IO[str]:
    """The stream, on which what nobody can see any more is lost and no error.

    A terminal may be closed while a run that `nohup` or `disown` has kept goes on.
    """
    return cast("IO[str]", _Lasting(stream))


class _Lasting:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._lost():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lost():
            self._stream.flush()

    @contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is still buffered would raise again when the interpreter ends.
            with Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
