"""The process that workers are forked from: Python's own fork server, with torch at hand in it."""

import os
import signal
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver, resource_tracker

from distrain.coordinator.stops import BEGAN, RESIZE
from distrain.errors import UsageError
from launch.failure import HANDED_ON, REPORTS
from launch.output.output_pipes import SHOWN
from launch.parent import LAUNCHER

_SETTINGS = ("PYTHONSAFEPATH", "PYTHONWARNINGS", LAUNCHER, REPORTS, BEGAN, SHOWN)
_PRELOADED = ["launch.tied", "launch.warm"]


def start() -> None:
    """Starts it, unless it is there; it imports while this process does other things.

    Raises:
        UsageError: there is no room for its socket's name.
    """
    before = settings()
    # A file of the user's called launch.py or torch.py must not be taken for the package.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Where this process is killed, the semaphores that Python takes away after it are no news.
    ignored = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [before.get("PYTHONWARNINGS"), ignored]))
    os.environ[LAUNCHER] = str(os.getpid())
    # A terminal that is closed tells all of its processes, and these are to be there still.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP,))
    try:
        # It unblocks some signals itself, so it has to be there before they are blocked.
        resource_tracker.ensure_running()
        # The signals that are handed on are the workers' to take, when they can.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*HANDED_ON, RESIZE))
        forkserver.set_forkserver_preload(_PRELOADED)
        forkserver.ensure_running()
    except OSError as error:
        if "AF_UNIX" not in str(error):
            raise
        raise UsageError(
            f"the folder for temporary files, {tempfile.gettempdir()}, is too long for a socket in "
            "it, whose path has 107 bytes at most: set TMPDIR to a shorter one"
        ) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        restore(before)


def settings() -> dict[str, str]:
    """Of the variables that have other values there than in a worker, those that are set.

    It may have been started for a run before, of the same launcher.
    """
    return {name: os.environ[name] for name in _SETTINGS if name in os.environ}


def restore(before: Mapping[str, str]) -> None:
    """Sets these variables back."""
    for name in _SETTINGS:
        os.environ.pop(name, None)
    os.environ.update(before)
