"""Starts Horovod's workers on several hosts, by `horovodrun --gloo`, and looks after them.

```
this launcher -> horovodrun -> ssh HOST -> launch.horovod.worker     rank r of the run
      |                                        |
      `---- a folder on the disk that all hosts share: the job, what asks for a stop, ----'
            that this launcher is alive, and the workers' reports
```
horovodrun knows of exit codes other than 0 alone, and kills 5 s after a signal: so stops and causes
go by the folder, and it is ended only where workers don't end by themselves.
"""

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING

from data_pipeline.errors import StorageError
from distrain.coordinator.stops import BEGAN, WATCHED, StoppedError, began_now, heeded, signal_name
from distrain.errors import ExitCode
from launch.failure import (
    Cause,
    Report,
    first_cause,
    forced_end,
    is_failure,
    is_retried,
    read_reports,
    tell,
)
from launch.horovod.environment import leave_environment, shown
from launch.horovod.host_list import Hosts
from launch.horovod.lines import HorovodrunLines
from launch.output.logs import Logs

if TYPE_CHECKING:
    from launch.output.worker_output import WorkerOutput

STOP = "stop"
"""The file that asks the workers to end: a signal's number."""

ALIVE = "alive"
"""The file that changes as long as the launcher lives."""

ALIVE_EVERY_S = 2.0

HAS_BEGUN = "begun-{rank}"
"""The file that a worker leaves as it begins."""

DEFAULTS = {
    # Horovod's own 30 s also hold while a worker is still starting, or is stopped by a debugger: as
    # long as torch's gloo waits. A worker that dies is noticed at once, by its connections.
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "1800",
    # The cause is shown once, by us; Horovod would log what follows from it on every worker.
    "HOROVOD_LOG_LEVEL": "fatal",
}
"""Variables of Horovod's workers, unless they have other values."""

_LOOK_S = 0.1
_ENDS_WITHIN_S = 15.0

_BY_SIGNAL, _SSH_FAILED = 128, 255


def run_on_hosts(
    arguments: Sequence[str],
    hosts: Hosts,
    folder: Path,
    *,
    max_restarts: int,
    grace_s: float,
    logs: Logs | None = None,
) -> Cause | None:
    """Runs `launch.worker` with these arguments on hosts; the cause of a failure.

    Args:
        arguments: Of `launch.worker`.
        hosts: Where the workers run.
        folder: One that all hosts have, in which one of this launch's own is made for its time.
        max_restarts: How often all are started again when one is lost.
        grace_s: They are ended where they don't end within so long after a signal.
        logs: What becomes of their output; without, it goes where this process's does.

    Raises:
        StorageError: nothing can be written there.
    """
    os.environ[BEGAN] = began_now()
    output = None if logs is None else _taken(logs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own = Path(tempfile.mkdtemp(prefix=".distrain-", dir=folder.resolve()))
    except OSError as error:
        raise StorageError(
            f"the workers of several hosts need a folder that all of them have: {folder} can't be "
            f"written ({error.strerror})"
        ) from error
    try:
        group = HorovodHosts(
            _shared(arguments, own),
            hosts,
            own,
            output,
            max_restarts=max_restarts,
            grace_s=grace_s,
        )
        return group.run()
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _taken(logs: Logs) -> "WorkerOutput":
    # Imported here: a dry run has no need of it, nor of rich.
    from launch.output.worker_output import WorkerOutput  # noqa: PLC0415

    return WorkerOutput(None, logs.shown, logs.place())


def _shared(arguments: Sequence[str], folder: Path) -> list[str]:
    """With a job that all hosts can read: the one that is resolved lies in this one's /tmp."""
    kind, path, *rest = arguments
    return [kind, str(shutil.copy(path, folder)) if kind == "job" else path, *rest]


class HorovodHosts:
    """The workers of all hosts, one start after the other."""

    def __init__(
        self,
        arguments: Sequence[str],
        hosts: Hosts,
        folder: Path,
        output: "WorkerOutput | None" = None,
        *,
        max_restarts: int,
        grace_s: float,
    ) -> None:
        """Takes the signals that ask for a stop.

        Args:
            arguments: Of `launch.worker`.
            hosts: Where they run.
            folder: Empty, on a disk that all hosts have at this path.
            output: Takes what the workers write.
            max_restarts: How often all are started again when one is lost.
            grace_s: They are ended where they don't end within so long after a signal.
        """
        self._command = hosts.command(str(os.getpid()), folder, arguments)
        self._hosts = hosts
        self._folder, self._output = folder, output
        self._max_restarts, self._grace_s = max_restarts, grace_s
        self._asked: int | None = None
        self._asked_at, self._interrupts = 0.0, 0
        self._shown_at = 0.0
        for number in heeded(WATCHED):
            signal.signal(number, self._ask)

    def run(self) -> Cause | None:
        """Runs them to their end; the cause where they have failed."""
        restarts = 0
        while True:
            for left in (*self._folder.glob("rank-*.json"), *self._marks(), self._folder / STOP):
                left.unlink(missing_ok=True)
            cause = self._one_start(restarts)
            if self._output is not None and cause is not None and is_failure(cause):
                self._output.tell_last_words(cause.rank)
            if cause is None or self._asked is not None or not is_retried(cause):
                return cause
            if restarts == self._max_restarts:
                return cause
            restarts += 1
            tell(
                f"distrain (rank {cause.rank}): {cause.text}\n"
                f"distrain: all workers start again (restart {restarts} of {self._max_restarts})\n",
                sys.stderr,
            )

    def _one_start(self, start: int) -> Cause | None:
        self._show_alive()
        if self._output is not None:
            self._output.begin(range(self._hosts.workers))
        environment = {**DEFAULTS, **os.environ, "TORCHELASTIC_RESTART_COUNT": str(start)}
        leave_environment(self._folder, environment)
        process = subprocess.Popen(
            self._command,
            env=shown(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for this launcher
        )
        lines = HorovodrunLines(self._output)
        readers = [
            Thread(target=lines.read, args=(source, sink), daemon=True)
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        forced = self._look_after(process, lines)
        for reader in readers:
            reader.join(timeout=_ENDS_WITHIN_S)
        if self._output is not None:
            self._output.end()
        begun = {rank for rank, mark in enumerate(self._marks()) if mark.exists()}
        return forced or cause_of(
            read_reports(self._folder),
            process.returncode,
            lines.first,
            list(lines.own),
            asked=self._asked,
            begun=begun,
        )

    def _look_after(
        self, process: "subprocess.Popen[bytes]", lines: HorovodrunLines
    ) -> Cause | None:
        """Until horovodrun has ended; the cause where it was made to, for want of an end."""
        failed_at = math.inf
        while process.poll() is None:
            if self._is_overdue():
                assert self._asked is not None
                forced = forced_end(self._asked, self._grace_s, enough=self._interrupts > 1)
                self._end(process)
                return forced
            failed_at = min(failed_at, time.monotonic() if lines.first else math.inf)
            if time.monotonic() - failed_at > _ENDS_WITHIN_S:
                self._end(process)  # it waits for others, which wait for the one that has failed
                break
            self._show_alive()
            if self._output is not None:
                self._output.look_for_place()
            time.sleep(_LOOK_S)
        return None

    def _marks(self) -> list[Path]:
        ranks = range(self._hosts.workers)
        return [self._folder / HAS_BEGUN.format(rank=rank) for rank in ranks]

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """Ends the workers at once: those that ssh has started, horovodrun can't reach."""
        leave(self._folder / STOP, str(int(signal.SIGKILL)))
        process.terminate()
        try:
            process.wait(timeout=_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        """Has the workers save and end; a second Ctrl-C has them end at once."""
        self._interrupts += number == signal.SIGINT
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
            leave(self._folder / STOP, str(int(number)))

    def _is_overdue(self) -> bool:
        if self._asked is None:
            return False
        return self._interrupts > 1 or time.monotonic() - self._asked_at > self._grace_s

    def _show_alive(self) -> None:
        if time.monotonic() - self._shown_at > ALIVE_EVERY_S:
            self._shown_at = time.monotonic()
            leave(self._folder / ALIVE, repr(self._shown_at))


def cause_of(
    reports: Sequence[Report],
    code: int,
    first: dict[int, int],
    said: Sequence[str],
    *,
    asked: int | None,
    begun: Collection[int],
) -> Cause | None:
    """Why a start has failed; None where it has not.

    Args:
        reports: Of the workers; those that stopped have ended with 0 for horovodrun.
        code: With which horovodrun has ended.
        first: The exit code, by rank, of the worker that horovodrun has seen fail first.
        said: Its own last lines.
        asked: The signal that this launcher was asked to end by.
        begun: The ranks of the workers that have come as far as our code.
    """
    # Others than the first are sent SIGTERM by horovodrun: they say that they were stopped.
    failures = [report for report in reports if report.exit_code != ExitCode.STOPPED]
    if asked is None and all(report.lost_peer for report in failures):
        apart = _never_there(first, begun)
        if apart is not None:
            return apart
    codes = {
        rank: _BY_SIGNAL - value if value > _BY_SIGNAL else value for rank, value in first.items()
    }
    if failures or (codes and asked is None):
        return first_cause(failures, codes)
    if reports:
        return first_cause(reports, {})
    if asked is not None:
        return Cause(0, ExitCode.STOPPED, str(StoppedError(signal_name(asked))))
    if code == 0:
        return None
    text = "".join(said).rstrip() or "it has said nothing"
    return Cause(
        0,
        ExitCode.WORKER_LOST,
        f"horovodrun has ended with {code} before a worker has: {text}\n"
        "Is each host reached by ssh without a password, with this Python at the same path?",
        by_itself=True,
    )


def _never_there(first: dict[int, int], begun: Collection[int]) -> Cause | None:
    """The cause where a worker's host, or the way to it, is at fault."""
    for rank, value in first.items():
        if value == _SSH_FAILED:
            text = f"the ssh connection to worker {rank} was lost, or it ended with {value} unheard"
            return Cause(rank, ExitCode.WORKER_LOST, text, by_itself=True)
        if rank not in begun and value < _BY_SIGNAL:
            text = (
                f"worker {rank} could not begin on its host (exit code {value}): each host needs "
                f"{sys.executable} with the same packages, the working directory {Path.cwd()}, and "
                "on a shared disk the folder that run.dir is in (of a script: the working "
                "directory)"
            )
            return Cause(rank, ExitCode.CONFIG, text, by_itself=True)
    return None


def leave(path: Path, text: str) -> None:
    """Writes a file for the other side, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
