"""The folder beside the destination in which a conversion works, and can be taken up again.

.NAME.partial/
  lock             held by whoever works here
  workers          shared by the processes, so that a successor waits for their end
  plan.json        digest of source, options and versions; another one is started anew
  staged/          the first pass: an Arrow file a piece, and a mark that it is finished
  marks/           the second pass: a mark a finished shard
  result/          the data set to be; it takes the destination's name at the end
  report.json      what to say of it, once the result is whole
"""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from data_pipeline.durable import fsync_folder, write_whole
from data_pipeline.errors import DataError, StorageError


class Workplace:
    """The paths within the folder, and what is done to it as a whole."""

    def __init__(self, destination: Path) -> None:
        """Names the folder; nothing is made yet."""
        self.destination = destination
        self.folder = destination.with_name(f".{destination.name}.partial")
        self.staged = self.folder / "staged"
        self.marks = self.folder / "marks"
        self.result = self.folder / "result"
        self._plan = self.folder / "plan.json"
        self._report = self.folder / "report.json"
        self._lock = self.folder / "lock"

    def prepare(self, plan: str) -> bool:
        """Makes the folders, keeping what was done under the same plan.

        Returns:
            Whether work done under another plan was thrown away.

        Raises:
            StorageError: the folder cannot be written.
        """
        before = _read(self._plan)
        other = before is not None and before != plan
        try:
            if before != plan:
                # Without a plan, a half-cleared folder is cleared again.
                self._plan.unlink(missing_ok=True)
                self._report.unlink(missing_ok=True)
                self._clear()
            for folder in (self.staged, self.marks, self.result):
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self.folder}: {error.strerror or error}") from error
        if before != plan:
            write_whole(self._plan, plan.encode())
        return other

    def finished_report(self, plan: str) -> bytes | None:
        """The report of a conversion that was broken off behind its last step, if there is one."""
        if _read(self._plan) != plan or self.result.exists() or not self._report.exists():
            return None
        return self._report.read_bytes()

    def finish(self, report: bytes, listed: Collection[str]) -> None:
        """Gives the result the destination's name; files that are not listed are not kept.

        A process that was killed leaves what it wrote aside, under a name of its own.

        Raises:
            StorageError: it cannot be given.
        """
        write_whole(self._report, report)
        try:
            for file in self.result.rglob("*"):
                if file.is_file() and file.relative_to(self.result).as_posix() not in listed:
                    file.unlink()
            self.result.chmod(0o755)
            for folder, _, _ in os.walk(self.result, topdown=False):
                fsync_folder(Path(folder))
            self.result.rename(self.destination)
            fsync_folder(self.destination.parent)
        except OSError as error:
            raise StorageError(
                f"cannot write {self.destination}: {error.strerror or error}"
            ) from error

    def remove(self) -> None:
        """Removes the folder, while its lock is held.

        What says that the work is finished goes late, and the lock last: who makes a new one is
        in a folder that holds nothing of this work, and keeps it.
        """
        self._clear()
        last = (self._plan, self._report, self._lock)
        for path in set(self.folder.iterdir()) - set(last):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for path in last:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # a successor is in it already
            self.folder.rmdir()

    def _clear(self) -> None:
        for folder in (self.staged, self.marks, self.result):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else works here meanwhile, not even an orphan of a predecessor.

        Raises:
            DataError: another conversion into the destination is going on.
            StorageError: the folder cannot be made.
        """
        try:
            handle = self._locked()
        except OSError as error:
            raise StorageError(f"cannot write {self.folder}: {error.strerror or error}") from error
        try:
            with self.shared_file.open("ab") as workers:
                # The processes of a predecessor that was killed end by themselves, at once.
                fcntl.flock(workers, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @property
    def shared_file(self) -> Path:
        """What every process of the conversion holds a shared lock on."""
        return self.folder / "workers"

    def _locked(self) -> int:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # the folder was removed meanwhile, by who has finished
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(handle)
                raise DataError(
                    f"another conversion into {self.destination} is going on: wait for its end, "
                    "or name another destination"
                ) from error
            try:
                if os.stat(self._lock).st_ino == os.fstat(handle).st_ino:  # noqa: PTH116
                    return handle
            except FileNotFoundError:  # removed between opening and locking: try again
                pass
            os.close(handle)


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def encoded(value: object) -> bytes:
    """JSON, the same for the same."""
    return msgspec.json.encode(value, order="deterministic")
