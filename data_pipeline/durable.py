"""Files and folders that are there whole or not at all, also after a crash."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.errors import DataError, StorageError


def fsync_folder(folder: Path) -> None:
    """Makes the folder's entries (a rename in it, say) survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Makes the file's bytes survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file aside, syncs it and renames it: readers see the old bytes or all the new ones.

    Raises:
        StorageError: the folder is missing, read-only or full; the old file stands unharmed.
    """
    # Two threads of a process may write the same file: each has its own aside.
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # on a read-only disk there is nothing to remove, and no way to
            aside.unlink()
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a folder beside `path` that takes its name once the block ends without an error.

    Raises:
        DataError: `path` exists already (an empty folder is taken over).
        StorageError: the parent cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise DataError(f"{path} exists already: name another destination, or remove it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield aside
        aside.chmod(0o755)
        for folder, _, _ in os.walk(aside, topdown=False):
            fsync_folder(Path(folder))
        aside.rename(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
