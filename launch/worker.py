"""What runs in each worker's process: a job, its rehearsal or a script; a report if it fails.

python -m launch.worker job RESOLVED.toml [--fresh]
python -m launch.worker rehearsal RESOLVED.toml SECONDS OUT.json
python -m launch.worker script SCRIPT ARGS...
"""

import atexit
import ctypes
import dataclasses
import faulthandler
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from distrain.coordinator.stops import InterruptedAgainError, StoppedError
from distrain.errors import ExitCode
from launch.failure import ASKING, REPORTS, Report, TerminatedError, report_of, write_report

_PR_SET_PDEATHSIG = 1


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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
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

    signal.pthread_sigmask(signal.SIG_UNBLOCK, ASKING)
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
        code = int(ExitCode.STOPPED)
        return Report(rank, time.monotonic_ns(), code, str(error), lost_peer=False)
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


def main() -> None:
    """The process's entry: dies with the launcher, and leaves a report if it fails."""
    _die_with_parent()
    faulthandler.enable()
    rank = int(os.environ.get("RANK", "0"))
    report = failure_of(sys.argv[1:], rank)
    if report is None:
        atexit._run_exitfuncs()
    elif REPORTS in os.environ:
        write_report(Path(os.environ[REPORTS]), report)
    else:
        print(report.text, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # closed by who started this, or full
            stream.flush()
    # At once: exchanges that wait for lost peers must not hold a failed process, and threads of
    # torch's must not abort a good one while the interpreter is taken down (see world.leave).
    os._exit(0 if report is None else report.exit_code)


def _die_with_parent() -> None:
    """Asks Linux to kill this process when the launcher dies, however it dies."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
