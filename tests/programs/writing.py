"""A program whose workers write in ways that what reads them has to stand.

Usage: writing.py pieces LINES   lines in pieces, then bytes that are no text, and no last newline;
                                 a process is left that keeps rank 0's output open for ten minutes
       writing.py killed         rank 1 writes 40 lines, one of them unfinished, and is killed
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from distrain.parallel import world as worlds

NO_TEXT = b"\xff\x00\xfe \x1b["


def pieces(rank: int, lines: int) -> None:
    """Each line in three writes, to standard output, and every third to standard error."""
    for number in range(lines):
        text = f"line {number} of {rank} {'-' * (number % 50)} end\n".encode()
        stream = 2 if number % 3 == 0 else 1
        for part in (text[:3], text[3:9], text[9:]):
            os.write(stream, part)
    if rank == 0:
        Path("left").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    os.write(1, NO_TEXT + b"\nunfinished")


def killed() -> None:
    for number in range(39):
        print(f"line {number}")
    print("\r 1%\r 2%", end="", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def main(what: str, *rest: str) -> None:
    world = worlds.join()
    if what == "pieces":
        pieces(world.rank, int(rest[0]))
    elif world.rank == 1:
        killed()


if __name__ == "__main__":
    main(*sys.argv[1:])
