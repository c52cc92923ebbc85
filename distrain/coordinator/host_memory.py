"""Memory of the host for snapshots: files that outlive the process, or the process's own.

/dev/shm/distrain-UID-DIGEST/      of one run folder; this user's alone
    start-.../                     of one start: an orphan of an earlier one can't reach it
        run.json                   whose snapshots these are
        slot-0, slot-1, slot-2     of a run whose workers all hold the same state
        part-0-of-2-slot-0, ...    of a sharded one: each worker's part of it
"""

import hashlib
import json
import mmap
import os
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from distrain.coordinator.checkpoint import CheckpointContents
from distrain.coordinator.snapshot import read_contents, read_state

SHARED_MEMORY = Path("/dev/shm")
RUN = "run.json"

_START = "start-"
_PART = re.compile(r"part-(\d+)-of-(\d+)-slot-\d+")

MOST_SHARE = 0.5
"""Of the memory that is left; a slot that would take more is not made."""

_CGROUP = Path("/sys/fs/cgroup")


class NoRoomError(Exception):
    """A snapshot has no place in memory; the message says why."""


def own_memory(_number: int, num_bytes: int) -> mmap.mmap:
    """Memory of this process for a slot.

    Raises:
        NoRoomError: there is too little.
    """
    _check_left(num_bytes)
    try:
        return _touched(mmap.mmap(-1, num_bytes))
    except OSError as error:
        raise NoRoomError(f"{num_bytes:,} bytes of memory: {error.strerror or error}") from error


def _touched(memory: mmap.mmap) -> mmap.mmap:
    """Has the kernel give the pages now: a first copy to them would take ten times as long."""
    torch.frombuffer(memory, dtype=torch.uint8).zero_()
    return memory


def _check_left(num_bytes: int) -> None:
    left = memory_left()
    if left is not None and num_bytes > MOST_SHARE * left:
        raise NoRoomError(
            f"a snapshot of {num_bytes:,} bytes would take more than half of the {left:,} bytes of "
            "memory that are left"
        )


def memory_left() -> int | None:
    """Bytes that this host, or this container, can still give; None where that is not told."""
    left: list[int] = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        left.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):  # "max" is no number, and no limit
        most = int((_CGROUP / "memory.max").read_text())
        left.append(max(0, most - int((_CGROUP / "memory.current").read_text())))
    return min(left, default=None)


class Part(NamedTuple):
    """One worker's part of a state, in some host's memory.

    Attributes:
        start: Of the run, in which it was copied.
        step: That the state is after.
        rank: Of the worker.
        num_parts: How many workers there were.
    """

    start: str
    step: int
    rank: int
    num_parts: int


def part_name(rank: int, num_parts: int) -> str:
    """What files with a worker's parts are called, without their slot's number."""
    return f"part-{rank}-of-{num_parts}-slot"


class SnapshotFolder:
    """Where the snapshots of a run lie on this host, for its next start to find."""

    def __init__(self, run: Path, *, root: Path = SHARED_MEMORY) -> None:
        """`run` is the run's folder: a relative path names the same as an absolute one."""
        digest = hashlib.sha256(os.path.realpath(run).encode()).hexdigest()[:16]
        self.path = root / f"distrain-{os.geteuid()}-{digest}"
        self._mine: Path | None = None
        self._is_alone = False

    def begin(self, owner: str, start: str) -> None:
        """Makes this start's folder; several workers of a start may.

        Args:
            owner: Tells one run from another.
            start: Tells one start from another; `[0-9a-f]+`.

        Raises:
            NoRoomError: there is no shared memory here, or somebody else's folder in the way.
        """
        try:
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            self._check_ours()
            self._mine, self._is_alone = self.path / f"{_START}{start}", False
            self._mine.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError), (self._mine / RUN).open("x") as file:
                json.dump({"owner": owner}, file)
        except OSError as error:
            self._mine = None
            raise NoRoomError(f"{self.path}: {error.strerror or error}") from error

    def _check_ours(self) -> None:
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NoRoomError(f"{self.path} is no folder")
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise NoRoomError(f"{self.path} is another user's, or open to others")

    def allocate(
        self, number: int, num_bytes: int, *, name: str = "slot", beside_bytes: int = 0
    ) -> mmap.mmap:
        """Memory for a slot, in this start's folder; takes the place of that of the same number.

        `beside_bytes` are what other workers of this host get at the same time.

        Raises:
            NoRoomError: there is too little.
        """
        assert self._mine is not None
        _check_left(num_bytes + beside_bytes)
        path = self._mine / f"{name}-{number}"
        try:
            path.unlink(missing_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # Memory that isn't there would be a SIGBUS in the middle of a copy.
                os.posix_fallocate(file, 0, num_bytes)
                return _touched(mmap.mmap(file, num_bytes))
            finally:
                os.close(file)
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise NoRoomError(
                f"{self.path} has no room for {num_bytes:,} bytes: {error.strerror or error}"
            ) from error

    def newest(self, owner: str, most_step: int) -> tuple[int, Path] | None:
        """The newest whole snapshot of this run, of a step up to `most_step`, and its step."""
        found = [(step, path) for path in self._slots(owner, "slot-*") for step in _step(path)]
        return max((one for one in found if one[0] <= most_step), default=None)

    def parts(self, owner: str, steps: range) -> dict[Part, Path]:
        """All parts of this run's state after one of these steps."""
        found: dict[Part, Path] = {}
        for path in self._slots(owner, "part-*"):
            if match := _PART.fullmatch(path.name):
                rank, num_parts = map(int, match.groups())
                start = path.parent.name.removeprefix(_START)
                parts = (Part(start, step, rank, num_parts) for step in _step(path))
                found |= {part: path for part in parts if part.step in steps}
        return found

    def _slots(self, owner: str, pattern: str) -> list[Path]:
        """Files that starts of this run have left; none where they can't be trusted or read."""
        with suppress(OSError, NoRoomError):
            self._check_ours()
            starts = [path for path in self.path.glob(f"{_START}*") if _owner_of(path) == owner]
            return [slot for start in starts for slot in start.glob(pattern)]
        return []

    def forget_others(self) -> None:
        """Removes what earlier starts have left; they are gone after the first time."""
        if self._is_alone:
            return
        self._is_alone = True
        for start in self.path.glob(f"{_START}*"):
            if start != self._mine:
                shutil.rmtree(start, ignore_errors=True)

    def remove(self) -> None:
        """Removes all of the run's snapshots on this host."""
        with suppress(OSError, NoRoomError):
            self._check_ours()
            shutil.rmtree(self.path, ignore_errors=True)


def _owner_of(start: Path) -> str | None:
    try:
        return str(json.loads((start / RUN).read_text())["owner"])
    except (OSError, ValueError, TypeError, KeyError):  # its start was cut off
        return None


def _step(path: Path) -> list[int]:
    """The step of a slot's state, or nothing where it holds none."""
    try:
        with _mapped(path) as memory:
            body = read_state(memory)
    except (OSError, ValueError):  # it is gone, or was cut off before it had any length
        return []
    return [] if body is None else [int(body["step"])]


def read_snapshot(path: Path) -> CheckpointContents | None:
    """The state in a slot; None where it holds none any more."""
    try:
        with _mapped(path) as memory:
            return read_contents(memory)
    except (OSError, ValueError):
        return None


def _mapped(path: Path) -> mmap.mmap:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return mmap.mmap(file, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(file)
