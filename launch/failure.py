"""Which of several failing workers is the cause: when one dies, its peers fail for want of it."""

import json
import os
import signal
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from distrain.coordinator.stops import (
    RELAY,
    WATCHED,
    InterruptedAgainError,
    StoppedError,
    signal_name,
)
from distrain.errors import (
    FATAL,
    ExitCode,
    LostPeerError,
    exit_code_of,
    is_for_the_user,
    is_lost_peer,
)

REPORTS = "DISTRAIN_REPORTS"
"""Environment variable: the folder that failing workers leave their reports in."""

STEPPED = "stepped"
"""The file in that folder that says that a start has done a step."""

HANDED_ON = (*WATCHED, RELAY)
"""The signals that the launcher hands on to its workers."""

_NOT_RETRIED = FATAL | {ExitCode.STOPPED, ExitCode.CTRL_C}
"""By the launcher itself: who stops a run does not want it to start again at once."""

_WITH_FORK_SERVER = 255
"""What multiprocessing gives for a process whose fork server has died."""


class TerminatedError(BaseException):
    """A signal asks a process that works alone to end."""

    def __init__(self, number: int) -> None:
        """Names the signal."""
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number, self.exit_code = number, 128 + number


@dataclass(frozen=True)
class Report:
    """What a failing worker says of itself.

    Attributes:
        rank: Its number.
        time_ns: When it failed, on the host's monotonic clock, which all its processes share.
        exit_code: What it exits with.
        text: The error's message, with a traceback where the message alone would not do.
        lost_peer: It failed in an exchange, so probably another failed before.
        goes_on: All is saved, and the launcher goes on with another number of workers.
    """

    rank: int
    time_ns: int
    exit_code: int
    text: str
    lost_peer: bool
    goes_on: bool = False


@dataclass(frozen=True)
class Cause:
    """The failure that all others follow from.

    Attributes:
        rank: Whose it is.
        exit_code: What the launcher exits with, where the workers do not start again.
        text: What the user is told.
        goes_on: It is none: the workers have saved, to go on in another number.
        by_itself: The worker was lost for a reason of its own, and not for want of another.
        is_hang: A worker hung, which another start may get over.
    """

    rank: int
    exit_code: int
    text: str
    goes_on: bool = False
    by_itself: bool = False
    is_hang: bool = False


def report_of(error: BaseException, rank: int, time_ns: int) -> Report:
    """The report of a worker that ends by an error."""
    if isinstance(error, TerminatedError):
        return Report(rank, time_ns, error.exit_code, str(error), lost_peer=False)
    if isinstance(error, StoppedError):
        return Report(
            rank,
            time_ns,
            int(ExitCode.STOPPED),
            str(error),
            lost_peer=False,
            goes_on=error.goes_on,
        )
    if isinstance(error, KeyboardInterrupt):
        text = str(error) or "interrupted"
    elif is_for_the_user(error):
        text = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])])
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    lost = is_lost_peer(error)
    if lost and not isinstance(error, LostPeerError):
        text = f"the connection to another worker was lost; did it end early? ({error})"
    code = ExitCode.WORKER_LOST if lost else exit_code_of(error)
    return Report(rank, time_ns, int(code), text, lost_peer=lost)


def write_report(folder: Path, report: Report) -> None:
    """Leaves the report for the launcher."""
    aside = folder / f".rank-{report.rank}.partial"
    aside.write_text(json.dumps(asdict(report)))
    aside.rename(folder / f"rank-{report.rank}.json")


def read_reports(folder: Path) -> list[Report]:
    """All workers' reports."""
    return [Report(**json.loads(path.read_bytes())) for path in folder.glob("rank-*.json")]


def first_cause(reports: Sequence[Report], exit_codes: Mapping[int, int]) -> Cause:
    """The cause: the earliest error that is not the loss of a peer, else who went without a word.

    Args:
        reports: Of the workers that left one.
        exit_codes: By rank, of those that failed; negative for a signal.
    """
    ordered = sorted(reports, key=lambda report: report.time_ns)
    own = [report for report in ordered if not report.lost_peer]
    if own:
        stopped = own[0].exit_code == ExitCode.STOPPED
        rank = 0 if stopped else own[0].rank
        return Cause(rank, own[0].exit_code, own[0].text, goes_on=own[0].goes_on)
    reported = {report.rank for report in reports}
    silent = sorted((rank, code) for rank, code in exit_codes.items() if rank not in reported)
    killed = [(rank, code) for rank, code in silent if code < 0]
    left = [(rank, code) for rank, code in silent if code > 0]
    for rank, code in (*killed, *left):
        return _silent_cause(rank, code)
    if ordered:
        return Cause(ordered[0].rank, ordered[0].exit_code, ordered[0].text)
    return Cause(0, ExitCode.WORKER_LOST, "a worker was lost")


def is_retried(cause: Cause) -> bool:
    """Whether to start the workers again may help; the same fault would come back."""
    return cause.is_hang or cause.exit_code not in _NOT_RETRIED


def is_failure(cause: Cause) -> bool:
    """Whether something went wrong: nobody has asked the workers to end."""
    return not cause.goes_on and cause.exit_code not in (ExitCode.STOPPED, ExitCode.CTRL_C)


def tell(text: str, stream: TextIO) -> None:
    """Writes to the user; where nobody reads, or a disk is full, what runs is not to blame."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        # What is still buffered would raise again when the interpreter ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def while_stopping(cause: Cause, asked: int, codes: Collection[int]) -> Cause:
    """The cause where a worker was lost after all were asked to stop.

    Workers that end by the very signal have nothing to save: a script of the user's.
    """
    if -asked in codes:
        return Cause(0, 128 + asked, f"stopped by {signal_name(asked)}")
    text = f"{cause.text}, while the run was being stopped: it is as it was at the last checkpoint"
    return Cause(cause.rank, cause.exit_code, text)


def forced_end(asked: int, grace_s: float, *, enough: bool) -> Cause:
    """The cause where workers that were asked to stop are ended: Ctrl-C again, or no time left."""
    if enough:
        return Cause(0, ExitCode.CTRL_C, str(InterruptedAgainError()))
    return Cause(
        0,
        ExitCode.WORKER_LOST,
        f"the workers did not end within {grace_s:g} s after {signal_name(asked)}, and were "
        "killed: what came after the last checkpoint is lost",
    )


def unsaved(grace_s: float) -> Cause:
    """The cause where workers that were asked to save, to go on in another number, did not."""
    return Cause(
        0,
        ExitCode.WORKER_LOST,
        f"the workers did not save within {grace_s:g} s, and were killed: they go on from the last "
        "checkpoint in another number",
        goes_on=True,
    )


def _silent_cause(rank: int, code: int) -> Cause:
    if code == ExitCode.STOPPED:
        return Cause(0, code, str(StoppedError("a signal")))
    if code == _WITH_FORK_SERVER:
        said = f"worker {rank} was lost with the process that it was forked from"
        return Cause(rank, ExitCode.WORKER_LOST, said)
    if code > 0:
        said = f"worker {rank} ended with exit code {code} and said nothing"
        return Cause(rank, code, said, by_itself=True)
    said = f"worker {rank} was killed by {signal_name(-code)}"
    return Cause(rank, ExitCode.WORKER_LOST, said, by_itself=True)
