"""Where what workers write is kept: in the run's folder once this launch has it, or where asked.

RUN/logs/start-0003-rank-1.log      the third start of the run, counted as `status.json` does
"""

import re
from pathlib import Path
from typing import Protocol

from data_pipeline.errors import StorageError
from distrain.coordinator.generation import mark_in
from distrain.coordinator.run_layout import LOGS

_NAME = re.compile(r"start-(\d{4,})-rank-\d+\.log")


class LogPlace(Protocol):
    """Says where the files of one start after the other are to be."""

    def begin(self, launch: str) -> None:
        """A start comes; `launch` is the name that all machines have for the launch."""
        ...

    def stem(self, *, at_end: bool = False) -> Path | None:
        """The path that all files of this start begin with; None as long as there is none."""
        ...


class RunPlace:
    """In the folder of a run, which another job, or another launch, may turn out to have."""

    def __init__(self, run: Path) -> None:
        """Looks at nothing yet."""
        self._run = run
        self._launch = self._before = ""
        self._has_run = False

    def begin(self, launch: str) -> None:
        """Notes which start was the last."""
        self._launch, self._before = launch, mark_in(self._run)

    def stem(self, *, at_end: bool = False) -> Path | None:
        """None until this start has left its mark.

        One that has ended before, of a launch which had the folder, counts as the next one to come.
        """
        mark = mark_in(self._run)
        number, _, rest = mark.partition(" ")
        if mark != self._before and rest.partition(" ")[2] == self._launch:
            self._has_run = True
            return _stem(self._run / LOGS, int(number))
        if at_end and self._has_run and number.isdecimal():
            return _stem(self._run / LOGS, int(number) + 1)
        return None


class FolderPlace:
    """In a folder that was asked for; starts are counted on from those that it has files of."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder.

        Raises:
            StorageError: it can't be made.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = [_NAME.fullmatch(path.name) for path in folder.iterdir()]
        except OSError as error:
            raise StorageError(f"--log-dir {folder}: {error.strerror or error}") from error
        self._folder = folder
        self._number = max((int(each[1]) for each in found if each), default=0)

    def begin(self, launch: str) -> None:  # noqa: ARG002 - the folder is this launch's anyway
        """Counts."""
        self._number += 1

    def stem(self, *, at_end: bool = False) -> Path | None:  # noqa: ARG002 - it is there at once
        """In the folder."""
        return _stem(self._folder, self._number)


def path_of(stem: Path, rank: int) -> Path:
    """The file of a worker."""
    return stem.with_name(f"{stem.name}-rank-{rank}.log")


def _stem(folder: Path, number: int) -> Path:
    return folder / f"start-{number:04}"
