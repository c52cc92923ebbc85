"""Where a run's checkpoints stand: what a folder and an object store have in common.

A checkpoint is some files under the name of its step, and state.json among them says what the
others hold. It is there once that file is: whoever writes commits by it, and whoever removes takes
it first.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

STATE = "state.json"

ABOUT = "run.json"
"""Says whose checkpoints stand beside it, where that is not in the run's own folder."""


class DamagedCheckpointError(Exception):
    """A checkpoint is not as it was written; the message names the file and what is wrong."""


class ReadableFile(Protocol):
    """A file of a checkpoint, from its begin."""

    def read(self, num_bytes: int = -1, /) -> bytes:
        """The next bytes, all that are left unless told; none at the end."""


class NewCheckpoint(Protocol):
    """A checkpoint that is being written."""

    def put(self, name: str, num_bytes: int, chunks: Iterator[list[memoryview]]) -> list[str]:
        """Writes a file from where its bytes lie; the SHA-256 of each chunk, in order."""

    def commit(self, manifest: bytes) -> None:
        """Writes state.json: the last that is written, and what the checkpoint is known by."""


class CheckpointStore(Protocol):
    """The checkpoints of one run. All methods raise StorageError where the place fails.

    Attributes:
        where: The place, for a person.
    """

    where: str

    def check(self) -> None:
        """Looks whether the place is there at all; ConfigError where it is not."""

    def begin(self, about: bytes) -> None:
        """Leaves word of whose checkpoints will stand here; shows that it can be written to."""

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, oldest first; only names are looked at."""

    def has(self, step: int) -> bool:
        """Whether there is one of a step; only names are looked at."""

    def name_of(self, step: int) -> str:
        """The name of a checkpoint, for a person: its files' names follow after a slash."""

    def files(self, step: int) -> dict[str, int]:
        """The names of a checkpoint's files, with their bytes.

        Raises:
            DamagedCheckpointError: what stands there can't be a checkpoint.
        """

    def written(self, step: int) -> float | None:
        """When it was written, in seconds since 1970; None where that can't be told."""

    def open(self, step: int, name: str) -> AbstractContextManager[ReadableFile]:
        """Opens a file of a checkpoint for reading; within `reading` alone."""

    def reading(self, step: int) -> AbstractContextManager[None]:
        """Within, a file that is missing, or is none, is a DamagedCheckpointError.

        A place that gives no answer damages nothing: that is a StorageError.
        """

    def new(self, step: int) -> AbstractContextManager[NewCheckpoint]:
        """Writes a checkpoint; one that is not committed within the block is none."""

    def remove(self, step: int) -> None:
        """Takes a checkpoint away, whole at once for whoever looks."""

    def set_aside(self, step: int) -> str:
        """Has a damaged one no longer be a checkpoint, and keeps it; under which name."""

    def kept_aside(self) -> list[str]:
        """The names of those that were set aside."""

    def clear_leftovers(self) -> None:
        """Removes what writers that were cut off have left."""
