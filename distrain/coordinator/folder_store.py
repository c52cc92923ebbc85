"""Checkpoints in a folder: written aside, synced and renamed, so that a rename is the commit."""

import hashlib
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipeline.durable import fsync_file, new_folder, write_whole
from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint_store import ABOUT, STATE, DamagedCheckpointError
from distrain.coordinator.daemon import begun
from distrain.coordinator.run_layout import folder_name, steps_in
from distrain.errors import ConfigError

WRITERS = 2
"""Threads that hash and write chunks of a file side by side."""

PER_WRITER_BYTES = 16 * 2**20
"""A smaller file has one thread."""

_MOST_PIECES = 512
"""Of memory, handed to one call of the system's, which takes 1,024 at most."""


class FolderStore:
    """Checkpoints as folders in a folder, which need not exist before the first of them.

    Attributes:
        where: The folder.
    """

    def __init__(self, root: Path, within: Path | None = None) -> None:
        """`within` is a folder that somebody else has to have made."""
        self._root, self._within = root, within
        self.where = str(root)

    def check(self) -> None:
        """Looks whether the outer folder is there: a disk that is not mounted is not filled up."""
        if self._within is not None and not self._within.is_dir():
            raise ConfigError(
                f"checkpoint.store names {self._within}, and there is no such folder: make it "
                "first, or mount what it is on"
            )

    def begin(self, about: bytes) -> None:
        """Writes run.json."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {self._root}: {error.strerror or error}") from error
        write_whole(self._root / ABOUT, about)

    def steps(self) -> list[int]:
        """Those of all folders with a checkpoint's name."""
        return steps_in(self._root)

    def has(self, step: int) -> bool:
        """Whether there is one of a step."""
        return self._folder(step).exists()

    def name_of(self, step: int) -> str:
        """Its folder."""
        return str(self._folder(step))

    def _folder(self, step: int) -> Path:
        return self._root / folder_name(step)

    def files(self, step: int) -> dict[str, int]:
        """Names and sizes; neither the folder nor a file may be a link."""
        folder = self._folder(step)
        with self.reading(step):
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise DamagedCheckpointError(f"{folder} is no folder of its own")
            there = {path.name: path.lstat() for path in sorted(folder.iterdir())}
            for name, status in there.items():
                if not stat.S_ISREG(status.st_mode):
                    raise DamagedCheckpointError(
                        f"{folder / name} is a link or no file: a checkpoint has none"
                    )
        return {name: status.st_size for name, status in there.items()}

    def written(self, step: int) -> float | None:
        """When state.json was."""
        try:
            return (self._folder(step) / STATE).stat().st_mtime
        except OSError:
            return None

    @contextmanager
    def open(self, step: int, name: str) -> Iterator[BinaryIO]:
        """Opens a file of a checkpoint for reading."""
        with (self._folder(step) / name).open("rb") as file:
            yield file

    @contextmanager
    def reading(self, step: int) -> Iterator[None]:
        """Within, an error of the system's says that the checkpoint is damaged."""
        try:
            yield
        except OSError as error:
            raise DamagedCheckpointError(f"{self._folder(step)} cannot be read: {error}") from error

    @contextmanager
    def new(self, step: int) -> Iterator["_NewFolder"]:
        """A folder aside, which takes its name at the end of the block."""
        with new_folder(self._folder(step)) as aside:
            yield _NewFolder(aside)

    def remove(self, step: int) -> None:
        """Takes its name away first, so that no half of one is ever found under it."""
        folder = self._folder(step)
        aside = folder.with_name(f".{folder.name}.partial")
        try:
            folder.rename(aside)
            for path in aside.iterdir():
                path.unlink()
            aside.rmdir()
        except OSError as error:
            raise StorageError(f"cannot remove the old checkpoint {folder}: {error}") from error

    def set_aside(self, step: int) -> str:
        """Renames it to `damaged-step-...`."""
        folder, number = self._folder(step), 1
        while (aside := self._root / f"damaged-{folder.name}-{number}").exists():
            number += 1
        try:
            folder.rename(aside)
        except OSError as error:
            raise StorageError(f"cannot move {folder} aside: {error}") from error
        return aside.name

    def kept_aside(self) -> list[str]:
        """The folders of damaged ones."""
        return sorted(path.name for path in self._root.glob("damaged-step-*"))

    def clear_leftovers(self) -> None:
        """Removes folders that were never renamed."""
        for left in self._root.glob(".step-*.partial"):
            shutil.rmtree(left, ignore_errors=True)


class _NewFolder:
    def __init__(self, aside: Path) -> None:
        self._aside = aside

    def put(self, name: str, num_bytes: int, chunks: Iterator[list[memoryview]]) -> list[str]:
        return write_chunks(self._aside / name, num_bytes, chunks)

    def commit(self, manifest: bytes) -> None:
        (self._aside / STATE).write_bytes(manifest)
        fsync_file(self._aside / STATE)


def write_chunks(
    path: Path, num_bytes: int, chunks: Iterator[list[memoryview]], most_writers: int = WRITERS
) -> list[str]:
    """Writes and syncs a file; the SHA-256 of each chunk, in order.

    Chunks are hashed and written side by side; both leave the interpreter to others, so that
    several processes would be no faster (`benchmarks/side_by_side.py`).

    Raises:
        OSError: it can't be written.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        places = _placed(chunks)
        taking, digests = threading.Lock(), dict[int, str]()

        def work() -> None:
            while True:
                with taking:
                    start, pieces = next(places, (-1, []))
                if start < 0:
                    return
                digests[start] = _written(file, start, pieces)

        side_by_side = min(most_writers, -(-num_bytes // PER_WRITER_BYTES))
        writers = [begun(work, "distrain-chunks") for _ in range(1, side_by_side)]
        try:
            work()
        finally:
            wait(writers)  # the file must not be closed under them
        for writer in writers:
            writer.result()
        os.fsync(file)
    finally:
        os.close(file)
    return [digests[start] for start in sorted(digests)]


def _placed(chunks: Iterator[list[memoryview]]) -> Iterator[tuple[int, list[memoryview]]]:
    """Each chunk with where it begins."""
    start = 0
    for pieces in chunks:
        size = sum(map(len, pieces))
        yield start, pieces
        start += size


def _written(file: int, start: int, pieces: list[memoryview]) -> str:
    """Hashes a chunk and writes it where it belongs; its SHA-256."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    for first in range(0, len(pieces), _MOST_PIECES):
        some = pieces[first : first + _MOST_PIECES]
        end = start + sum(map(len, some))
        while start < end:
            done = os.pwritev(file, some, start)
            start += done
            while some and done >= len(some[0]):
                done -= len(some.pop(0))
            if some:
                some[0] = some[0][done:]
    return digest.hexdigest()
