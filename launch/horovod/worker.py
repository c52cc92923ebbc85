"""A worker that horovodrun starts on one of several hosts: `launch.horovod.hosts` is its launcher.

FOLDER ARGUMENTS...    ARGUMENTS are those of `launch.worker`
"""

import atexit
import faulthandler
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread

from distrain.coordinator.stops import RELAY, answer_to
from distrain.errors import ExitCode
from launch.failure import HANDED_ON, report_of, write_report
from launch.horovod.environment import take_environment
from launch.horovod.hosts import ALIVE, HAS_BEGUN, STOP, leave
from launch.parent import name_process
from launch.worker import failure_of

LOOK_S = 0.2
"""How often a worker looks for what asks it to stop."""

GONE_S = 30.0
"""A launcher that has given no sign of life for so long is gone, which ssh does not say; a worker
has as long again to save."""


class _OnHost:
    """A worker's word to its launcher, by the shared folder."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder, self._rank = folder, rank

    def asked(self) -> None:
        """Has the other workers told."""
        if not (self._folder / STOP).exists():
            leave(self._folder / STOP, str(RELAY))

    def ends(self, error: BaseException) -> None:
        """Leaves a report."""
        write_report(self._folder, report_of(error, self._rank, time.time_ns()))

    def stepped(self) -> None:
        """All hosts start again together, whether or not there was a step."""

    def pulse_folder(self) -> Path | None:
        """Its launcher is on another host: a worker that hangs ends itself."""
        return None


def main(folder: Path, arguments: list[str]) -> None:
    """Works, and leaves a report where it fails or was stopped."""
    rank = int(os.environ["HOROVOD_RANK"])
    take_environment(folder)
    leave(folder / HAS_BEGUN.format(rank=rank), "")
    # A run takes them when it can; until then they wait.
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    signal.signal(RELAY, signal.SIG_IGN)
    name_process(f"distrain-r{rank}")
    faulthandler.enable()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    Thread(target=_watch, args=(folder,), name="distrain-stop", daemon=True).start()
    answer_to(_OnHost(folder, rank))
    report = failure_of(arguments, rank)
    if report is None:
        atexit._run_exitfuncs()
    else:
        # The clocks of hosts have nothing in common but the time of day.
        write_report(folder, replace(report, time_ns=time.time_ns()))
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError, ValueError):
            stream.flush()
    # One that has stopped, all being saved, must not have horovodrun end the others.
    os._exit(0 if report is None or report.exit_code == ExitCode.STOPPED else report.exit_code)


def _watch(folder: Path) -> None:
    """Raises the signal that the launcher asks for, or SIGTERM where that is gone.

    Where that is gone, this worker does not stay longer than it is.
    """
    seen, since = "", time.monotonic()
    told = False
    while folder.is_dir() and time.monotonic() - since < GONE_S:
        time.sleep(LOOK_S)
        with suppress(OSError, ValueError):  # nothing is asked for
            number = int((folder / STOP).read_text())
            if not told or number == signal.SIGKILL:
                os.kill(os.getpid(), number)
            told = True
        with suppress(OSError):
            alive = (folder / ALIVE).read_text()
            if alive != seen:
                seen, since = alive, time.monotonic()
    if not told:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GONE_S)
    os._exit(ExitCode.WORKER_LOST)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
