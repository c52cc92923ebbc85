"""A program that fails in one of its workers, or waits to be stopped.

Usage: failing.py raise|kill|exit|leave|end|config RANK [BACKEND], or failing.py wait FILE
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from distrain.config import Backend
from distrain.errors import ConfigError
from distrain.parallel import world as worlds


def fail_here(how: str) -> None:
    if how == "raise":
        raise ValueError(f"planted in rank {os.environ['RANK']}")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leave":
        os._exit(3)
    if how == "end":
        sys.exit(0)
    if how == "config":
        raise ConfigError("epochs is 0: give 1 or more")
    sys.exit(7)


def main(how: str, where: str, backend: Backend = "torch") -> None:
    world = worlds.join(backend)
    send = torch.ones(4)
    world.communicator.all_gather(send)
    if how == "wait":
        Path(f"{where}-{world.rank}").touch()
        if world.rank == 0:
            time.sleep(600)
    elif world.rank == int(where):
        fail_here(how)
    # The others wait here for the one that fails.
    world.communicator.all_gather(send)


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
