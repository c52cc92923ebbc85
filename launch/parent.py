"""A process's ties to the one that has started it, and that one's to it, as Linux has them."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


LAUNCHER = "DISTRAIN_LAUNCHER"
"""Environment variable of the fork server: its launcher's process."""


def die_with_parent(parent: int) -> None:
    """Asks Linux to kill this process when its parent dies; at once where it has died already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def signal_main_thread(process: int, number: int) -> None:
    """Sends a signal to a process's main thread, and not to whichever of its threads has time.

    Raises:
        ProcessLookupError: there is no such process.
    """
    if ctypes.CDLL(None, use_errno=True).tgkill(process, process, number):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def name_process(name: str) -> None:
    """Names this process for `ps`, `top` and `pkill`; 15 characters are kept."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode()[:15])
