"""Which of several failing workers is the cause: when one dies, its peers fail for want of it."""

import json
import re
import signal
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distrain.errors import ExitCode, exit_code_of, is_for_the_user

REPORTS = "DISTRAIN_REPORTS"
"""Environment variable: the folder that failing workers leave their reports in."""

_LOST_PEER = re.compile(
    r"gloo|nccl|Connection (closed|reset|refused)|Broken pipe|TCPStore|peer", re.IGNORECASE
)


@dataclass(frozen=True)
class Report:
    """What a failing worker says of itself.

    Attributes:
        rank: Its number.
        time_ns: When it failed, on the host's monotonic clock, which all its processes share.
        exit_code: What it exits with.
        text: The error's message, with a traceback where the message alone would not do.
        lost_peer: It failed in an exchange, so probably another failed before.
    """

    rank: int
    time_ns: int
    exit_code: int
    text: str
    lost_peer: bool


@dataclass(frozen=True)
class Cause:
    """The failure that all others follow from."""

    rank: int
    exit_code: int
    text: str


def report_of(error: BaseException, rank: int, time_ns: int) -> Report:
    """The report of a worker that ends by an error."""
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif is_for_the_user(error):
        text = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", [])])
    else:
        text = "".join(traceback.format_exception(error)).rstrip()
    lost = isinstance(error, (RuntimeError, OSError)) and bool(_LOST_PEER.search(str(error)))
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
    """The cause: the earliest error that is not the loss of a peer, else a worker that was killed.

    Args:
        reports: Of the workers that left one.
        exit_codes: By rank, of those that failed; negative for a signal.
    """
    ordered = sorted(reports, key=lambda report: report.time_ns)
    own = [report for report in ordered if not report.lost_peer]
    if own:
        return Cause(own[0].rank, own[0].exit_code, own[0].text)
    reported = {report.rank for report in reports}
    silent = {rank: code for rank, code in exit_codes.items() if rank not in reported}
    for rank, code in sorted(silent.items()):
        if code < 0:
            text = f"worker {rank} was killed by {signal.Signals(-code).name}"
            return Cause(rank, ExitCode.WORKER_LOST, text)
    if ordered:
        return Cause(ordered[0].rank, ordered[0].exit_code, ordered[0].text)
    rank, code = min(silent.items(), default=(0, int(ExitCode.WORKER_LOST)))
    return Cause(rank, code, f"worker {rank} ended with exit code {code}")
