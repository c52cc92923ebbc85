"""Starts the process that measures one contestant, and watches its memory and its children's."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EVERY_S = 0.1
LIMIT_S = 600


class FailedError(Exception):
    """The process ended otherwise than it should, or did not end."""


@dataclass(frozen=True)
class Run:
    """A task, how many samples it has, and where the data are kept."""

    task: str
    rows: int
    cache: Path


@dataclass(frozen=True)
class Measured:
    """What one process showed.

    Attributes:
        samples_per_s: 0 if it was only checked.
        rss_mb: The most resident memory that it and its children had together.
        anon_mb: The same of anonymous memory.
        others_cores: How many cores everything else on the machine took meanwhile, on average.
    """

    samples_per_s: float
    rss_mb: float
    anon_mb: float
    others_cores: float


def measured(run: Run, contestant: str, threads: int, seconds: float) -> Measured:
    """Measures a contestant in a process of its own; with 0 seconds, checks it.

    Raises:
        FailedError: the process failed; with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "out.json", Path(folder) / "log"
        what = (run.task, run.rows, run.cache, contestant, threads, seconds, out)
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.loading.measure", *map(str, what)],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                watched = _watch(process)
            finally:
                # Its workers may outlive it.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if process.returncode != 0 or not out.exists():
            lines = log.read_text(errors="replace").strip().splitlines()
            raise FailedError(lines[-1] if lines else f"exit code {process.returncode}")
        found = json.loads(out.read_text())
    return Measured(found.get("samples_per_s", 0.0), *watched)


def least_disturbed(
    run: Run, contestant: str, threads: int, seconds: float, tries: int
) -> Measured:
    """Measures again while others took more than a tenth of a core, and takes the quietest."""
    best = measured(run, contestant, threads, seconds)
    for _ in range(tries - 1):
        if best.others_cores <= 0.1:
            break
        again = measured(run, contestant, threads, seconds)
        best = min(best, again, key=lambda one: one.others_cores)
    return best


def _watch(process: subprocess.Popen[bytes]) -> tuple[float, float, float]:
    """The peaks in MB, and the cores that others took, once the process has ended.

    Or when its time is over.
    """
    most_rss = most_anon = 0
    own: dict[int, int] = {}  # CPU time by process, as last seen
    began, busy = time.perf_counter(), _busy_ticks()
    while (took := time.perf_counter() - began) < LIMIT_S and process.returncode is None:
        family = _family(process.pid)
        found = [_memory(pid) for pid in family]
        most_rss = max(most_rss, sum(rss for rss, _ in found))
        most_anon = max(most_anon, sum(anon for _, anon in found))
        own.update({pid: ticks for pid in family if (ticks := _ticks(pid))})
        with suppress(subprocess.TimeoutExpired):
            process.wait(EVERY_S)
    others = max(0, _busy_ticks() - busy - sum(own.values())) / os.sysconf("SC_CLK_TCK")
    return most_rss / 1e3, most_anon / 1e3, others / max(took, EVERY_S)


def _busy_ticks() -> int:
    """CPU time that the machine has spent on processes."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return int(user) + int(nice) + int(system)


def _ticks(pid: int) -> int:
    """CPU time of a process; 0 of one that has just ended."""
    with suppress(OSError):
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(after_name[11]) + int(after_name[12])
    return 0


def _family(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in task.read_text().split():
                found += _family(int(child))
    return found


def _memory(pid: int) -> tuple[int, int]:
    """Resident and anonymous memory in kB; none of a process that has just ended."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        fields = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        if "VmRSS" in fields:
            return int(fields["VmRSS"].split()[0]), int(fields["RssAnon"].split()[0])
    return 0, 0
