"""What runs in each worker's process: a job, its rehearsal or a script; a report if it fails.

job RESOLVED.toml [--fresh]
rehearsal RESOLVED.toml SECONDS OUT.json
script SCRIPT ARGS...
"""

import atexit
import dataclasses
import faulthandler
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from distrain.coordinator.stops import RELAY, InterruptedAgainError, StoppedError, answer_to
from launch import fork_server, tied
from launch.failure import (
    HANDED_ON,
    REPORTS,
    STEPPED,
    Report,
    TerminatedError,
    report_of,
    tell,
    write_report,
)
from launch.output.output_pipes import write_to_pipes
from launch.parent import die_with_parent, name_process


def run(arguments: Sequence[str]) -> None:
    """Runs a job or a script in this process; errors are the caller's."""
    kind, target, *rest = arguments
    if kind == "job":
        _run_job(Path(target), fresh="--fresh" in rest)
        return
    if kind == "rehearsal":
        _rehearse(Path(target), float(rest[0]), Path(rest[1]))
        return
    # A script's signals are its own: those of the launcher's that wait come now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    sys.argv = [target, *rest]
    sys.path.insert(0, str(Path(target).resolve().parent))
    runpy.run_path(target, run_name="__main__")


def _run_job(path: Path, *, fresh: bool) -> None:
    """Trains; a signal before training begins or after it has ended finds all saved."""
    try:
        from distrain.job_file import read_job  # noqa: PLC0415 - torch takes 2 s to import, and
        from distrain.run_job import run_job  # noqa: PLC0415 - a failing launcher has no need of it

        # A model named as PACKAGE.MODULE:FUNCTION is looked for where the job was started.
        sys.path.insert(0, str(Path.cwd()))
        run_job(read_job(path), fresh=fresh)
    except InterruptedAgainError:
        raise
    except KeyboardInterrupt as error:
        raise StoppedError("SIGINT") from error
    except TerminatedError as error:
        raise StoppedError(signal.Signals(error.number).name) from error


def _rehearse(path: Path, seconds: float, out: Path) -> None:
    """Tries a job's first steps; rank 0 leaves what was measured."""
    from distrain.job_file import read_job  # noqa: PLC0415 - as above
    from distrain.practice.rehearsal import rehearse  # noqa: PLC0415

    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED_ON)
    sys.path.insert(0, str(Path.cwd()))
    measured = rehearse(read_job(path), seconds)
    if measured is not None:
        out.write_text(json.dumps(dataclasses.asdict(measured)))


def failure_of(arguments: Sequence[str], rank: int) -> Report | None:
    """Runs, and gives the report of how it failed, or None.

    A script's `sys.exit(n)` counts as failed with n, unless n is 0.
    """
    try:
        run(arguments)
    except StoppedError as error:
        return report_of(error, rank, time.monotonic_ns())
    except SystemExit as error:
        if error.code in (None, 0):
            return None
        code = error.code if isinstance(error.code, int) else 1
        text = f"the program ended with exit code {code}"
        text = error.code if isinstance(error.code, str) else text
        return Report(rank, time.monotonic_ns(), code, text, lost_peer=False)
    except BaseException as error:  # noqa: BLE001 - handed to the launcher, which shows it
        return report_of(error, rank, time.monotonic_ns())
    return None


class _Launched:
    """A worker's word to its launcher, while its main thread is busy."""

    def __init__(self, launcher: int, rank: int) -> None:
        self._launcher, self._rank = launcher, rank

    def asked(self) -> None:
        """Has the launcher tell the other workers."""
        with suppress(ProcessLookupError):
            os.kill(self._launcher, RELAY)

    def ends(self, error: BaseException) -> None:
        """Leaves a report."""
        report = report_of(error, self._rank, time.monotonic_ns())
        write_report(Path(os.environ[REPORTS]), report)

    def stepped(self) -> None:
        """Leaves a mark."""
        (Path(os.environ[REPORTS]) / STEPPED).touch()

    def pulse_folder(self) -> Path | None:
        """With the reports."""
        return Path(os.environ[REPORTS])


class Alone:
    """The word of a worker that works in its launcher's process."""

    def asked(self) -> None:
        """There is nobody else to be told."""

    def ends(self, error: BaseException) -> None:
        """Shows the error."""
        tell(f"distrain: {error}\n", sys.stderr)

    def stepped(self) -> None:
        """Nobody starts it again."""

    def pulse_folder(self) -> Path | None:
        """Nobody is left to look."""
        return None


def work(
    arguments: Sequence[str],
    launcher: int,
    search_path: Sequence[str],
    settings: Mapping[str, str],
    places: Sequence[int] = (),
    told: Mapping[str, str] | None = None,
) -> None:
    """A worker's process, from its begin: dies with the launcher, and leaves a report if it fails.

    Args:
        arguments: As above.
        launcher: The launcher's process, which is told of signals that come to this one.
        search_path: Where Python looks for modules.
        settings: The launcher's `fork_server.settings`.
        places: By local rank, which of this machine's places for workers, and so which of its
            devices, is whose; each its own unless given.
        told: Variables that the launcher has for this start.
    """
    preloaded = os.getpid() != tied.FORK_SERVER
    die_with_parent(tied.FORK_SERVER if preloaded else os.getppid())
    os.setsid()  # Ctrl-C in a terminal is for the launcher, which hands it on
    rank = int(os.environ.get("HOROVOD_RANK") or os.environ["RANK"])
    os.environ.update(told or {})
    if places:
        os.environ["LOCAL_RANK"] = str(places[int(os.environ["LOCAL_RANK"])])
    name_process(f"distrain-r{rank}")
    sys.path[:] = search_path
    fork_server.restore(settings)
    write_to_pipes(Path(os.environ[REPORTS]), rank)
    answer_to(_Launched(launcher, rank))
    # Until a run goes on that can save, and after it, it has no meaning.
    signal.signal(RELAY, signal.SIG_IGN)
    faulthandler.enable()
    report = failure_of(arguments, rank)
    if report is None:
        atexit._run_exitfuncs()
    else:
        write_report(Path(os.environ[REPORTS]), report)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError, ValueError):  # closed, by whomever, or full
            stream.flush()
    # At once: exchanges that wait for lost peers must not hold a failed process, and one that has
    # done its work need not wait for the others.
    os._exit(0 if report is None else report.exit_code)
