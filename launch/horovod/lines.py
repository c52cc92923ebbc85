"""What horovodrun writes: the workers' lines, by rank and stream, and between them its own.

```
[1]<stdout>:epoch 3, loss 0.21                 of worker 1
Process 1 exit with status code 137.           of horovodrun
```
"""

import re
from collections import deque
from typing import IO, TYPE_CHECKING, TextIO

from launch.failure import tell
from launch.output.output_pipes import STREAMS

if TYPE_CHECKING:
    from launch.output.worker_output import WorkerOutput

_MARK = rb"\[(\d+)\]<std(out|err)>:"
_OF_WORKER = re.compile(_MARK + rb"(.*)", re.DOTALL)
_AFTER_BAR = re.compile(rb"(?<=\r)(?=" + _MARK.replace(b"(", b"(?:", 2) + rb")")
_OF_SHELL = (b"Killed\n", b"Terminated\n", b"Aborted\n")
_EXIT = re.compile(r"Process (\d+) exit with status code (\d+)")
_STREAM_NUMBERS = {name.encode(): number for number, name in STREAMS.items()}
_LINES_KEPT = 20


class HorovodrunLines:
    """Hands on what the workers of one start say; keeps what horovodrun says itself.

    Attributes:
        own: Its own last lines.
        first: By rank, the exit code of the worker that it has seen fail first.
    """

    def __init__(self, output: "WorkerOutput | None") -> None:
        """`output` takes what workers say; None where it is this process's own, as it comes."""
        self._output = output
        self.own: deque[str] = deque(maxlen=_LINES_KEPT)
        self.first: dict[int, int] = {}

    def read(self, source: IO[bytes], sink: TextIO) -> None:
        """Reads to the end; several threads may, each a source of its own.

        Args:
            source: horovodrun's standard output or standard error.
            sink: This process's own.
        """
        for line in source:
            for part in _AFTER_BAR.split(line):
                self._take(part, sink)

    def _take(self, line: bytes, sink: TextIO) -> None:
        found = _OF_WORKER.fullmatch(line)
        if found is None:
            said = line.decode(errors="replace")
            self.own.append(said)
            failed = _EXIT.match(said)
            if failed and not self.first:
                self.first[int(failed[1])] = int(failed[2])
            return
        rank, stream, text = found.groups()
        if text in _OF_SHELL:
            return  # of the one that horovodrun has started the worker by
        if self._output is None:
            tell(text.decode(errors="replace"), sink)
        else:
            self._output.take(int(rank), _STREAM_NUMBERS[stream], text)
