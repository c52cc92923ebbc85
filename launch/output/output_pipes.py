"""How what a worker writes comes to its launcher: named pipes in the folder of the reports."""

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from distrain.coordinator import terminal

SHOWN = "DISTRAIN_LOGS"
"""Environment variable: which workers' output the launcher shows, as `--logs` has it."""

ALL, RANK_0, FAILED = CHOICES = ("all", "rank0", "failed")
"""What `--logs` takes."""

STREAMS = {1: "out", 2: "err"}
"""Standard output and standard error, by descriptor."""


def open_pipes(folder: Path, rank: int) -> Mapping[int, int]:
    """A pipe for each stream of the worker of a rank; the ends to read, which don't block.

    A pipe of an earlier start is nobody's any more, whoever has kept it open.
    """
    ends = {}
    for stream in STREAMS:
        path = _path(folder, rank, stream)
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        ends[stream] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    return ends


def write_to_pipes(folder: Path, rank: int) -> None:
    """Has this process, a worker, write to its pipes, where its launcher has made any.

    Rank 0 keeps the terminal to draw on, where there is one.
    """
    if not _path(folder, rank, 1).exists():
        return
    if rank == 0 and os.environ.get(SHOWN) in (ALL, RANK_0) and os.isatty(1):
        terminal.draw_on(os.dup(1))
    for stream in STREAMS:
        # Its reader is there: without one, this would not wait but fail.
        end = os.open(_path(folder, rank, stream), os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(end, True)
        os.dup2(end, stream)
        os.close(end)
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):  # a line is to be seen when it is written
            file.reconfigure(line_buffering=True)


def _path(folder: Path, rank: int, stream: int) -> Path:
    return folder / f"rank-{rank}.{STREAMS[stream]}"
