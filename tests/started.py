"""Commands under way that a test interferes with."""

import functools
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Self

import psutil

from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, ROOT, Completed, clean_environment
from tests.run_folders import Outcome, events, last_step, named, outcome, status

JOB = ROOT / "examples" / "digits.toml"
LIMIT_S = 300.0
"""For a whole command on a machine that does ten other things."""

FAULTY_JOB = """\
[data]
path = "{digits}"
inputs = "image"
target = "label"

[model]
build = "faulty_model:build"

[optimizer]
lr = 0.05
momentum = 0.9

[training]
epochs = 4
global_batch = 256
micro_batch = 128

[checkpoint]
every_steps = 10
"""
FAULTY_STEPS = 24

STOPPED = "with everything saved: run the same command to go on"


def loaded(limit_s: float) -> float:
    """A limit where others have the cores as well: whoever has to end waits for its turns."""
    return limit_s * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def random_moments() -> random.Random:
    """Numbers from DISTRAIN_TEST_SEED, else from the time; the seed is shown where a test fails."""
    seed = int(os.environ.get("DISTRAIN_TEST_SEED", time.time_ns() // 1_000_000))
    print(f"DISTRAIN_TEST_SEED={seed}")
    return random.Random(seed)


class Started:
    """A `distrain` command under way, in a session of its own; killed at the end of the block.

    Attributes:
        lines: What it has said on stderr, each line with the time it was read at.
    """

    def __init__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        stderr: IO[str] | int = subprocess.PIPE,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
        program: Sequence[str] = (sys.executable, "-m", "launch.main"),
    ) -> None:
        """`within` is a command that the `program` is started by, and becomes."""
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [*within, *program, *map(str, arguments)],
            cwd=cwd,
            env=clean_environment() | dict(environment or {}),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def said(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def workers(self) -> dict[int, psutil.Process]:
        """The live workers by rank; none where the command works in one process."""
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return {}
        return {rank: process for process in below if (rank := rank_of(process)) is not None}

    def worker(self, rank: int) -> psutil.Process:
        """The live worker of that rank; waits until it is there."""
        found = self.workers()
        while rank not in found:  # which may end between two looks
            self.until(lambda: rank in self.workers())
            found = self.workers()
        return found[rank]

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits until it holds; the command must not end before."""
        end = time.monotonic() + LIMIT_S
        while True:
            has_ended = self.process.poll() is not None  # what it did last is looked for after that
            if condition():
                return
            assert not has_ended, f"it has ended before: {self.said}"
            assert time.monotonic() < end, f"it was waited for in vain: {self.said}"
            time.sleep(0.005)

    def ctrl_c(self) -> None:
        """What a terminal does: the whole foreground group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self) -> int:
        """Waits for the end; the exit code."""
        code = self.process.wait(timeout=LIMIT_S)
        self._reader.join(timeout=10)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        for worker in workers.values():
            with suppress(psutil.NoSuchProcess):
                worker.kill()
        self._reader.join(timeout=10)
        if self.process.stderr is not None:
            self.process.stderr.close()


def rank_of(process: psutil.Process) -> int | None:
    """The rank that a live worker is named by; None for what is none."""
    try:
        found = re.fullmatch(r"distrain-r(\d)", process.name())
        alive = process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return int(found[1]) if found and alive else None


def train(
    digits: Path,
    folder: Path,
    workers: int | str,
    *more: object,
    stderr: IO[str] | int = subprocess.PIPE,
) -> Started:
    """Starts `distrain train examples/digits.toml`."""
    return Started(*_command(digits, folder, workers, *more), stderr=stderr)


def train_faulty(
    digits: Path,
    folder: Path,
    workers: int | str,
    *more: object,
    within: Sequence[str] = (),
    **environment: str,
) -> Started:
    """Starts the job of the faulty model, from the folder that its module lies in."""
    command = _faulty_command(digits, folder, workers, *more)
    return Started(*command, cwd=PROGRAMS, environment=environment, within=within)


def _command(digits: Path, folder: Path, workers: int | str, *more: object) -> Sequence[object]:
    paths = ("--data.path", digits, "--run.dir", folder)
    return ("train", JOB, *paths, "--workers", workers, *more)


def _faulty_command(
    digits: Path, folder: Path, workers: int | str, *more: object
) -> Sequence[object]:
    job = folder.with_name("faulty.toml")
    job.write_text(FAULTY_JOB.format(digits=digits))
    return ("train", job, "--run.dir", folder, "--workers", workers, *more)


def to_end(digits: Path, folder: Path, *more: object) -> Outcome:
    """Has `examples/digits.toml` begun or gone on with on one worker; the outcome.

    It has to end without a word on stderr.
    """
    return _ended(folder, distrain_alone(*_command(digits, folder, 1, *more)))


def to_end_faulty(digits: Path, folder: Path, *more: object) -> Outcome:
    """Has the faulty model's job begun or gone on with on one worker, without a fault."""
    command = _faulty_command(digits, folder, 1, *more)
    return _ended(folder, distrain_alone(*command, cwd=PROGRAMS))


def _ended(folder: Path, done: Completed) -> Outcome:
    assert (done.returncode, done.stderr) == (0, "")
    return outcome(folder)


@functools.cache
def unbroken(digits: Path, *more: object) -> Outcome:
    """The outcome of `examples/digits.toml` where nothing happens, on one worker."""
    with tempfile.TemporaryDirectory() as folder:
        return to_end(digits, Path(folder) / "run", *more)


@functools.cache
def unbroken_faulty(digits: Path, *more: object) -> Outcome:
    """The outcome of the faulty model's job where nothing happens, on one worker."""
    with tempfile.TemporaryDirectory() as folder:
        return to_end_faulty(digits, Path(folder) / "run", *more)


def expect_stopped(run: Started, folder: Path, reason: str) -> None:
    """Of all who are told how it ended: the caller, the user, and who looks later."""
    assert run.ends() == 75, run.said
    assert run.said == f"distrain: stopped by {reason}, {STOPPED}"
    said = status(folder)
    assert (said["state"], said["exit_code"]) == ("stopped", 75)
    assert said["reason"] == f"stopped by {reason}"
    assert said["step"] == last_step(folder)
    assert (events(folder)[-1]["event"], events(folder)[-1]["exit_code"]) == ("end", 75)


def is_training(folder: Path, start: int) -> bool:
    """Whether the run's so-manieth start has done a step; the first begins at 0."""
    begins = [0, *(event["step"] for event in named(folder, "resume"))]
    return len(begins) == start and last_step(folder) > begins[-1]


def builds(calls: Path) -> int:
    """How often rank 0's model was built: once a start."""
    return calls.with_name(f"{calls.name}-0").read_text().split().count("build")


def has_line(path: Path, line: str) -> bool:
    return path.exists() and line in path.read_text().split()
