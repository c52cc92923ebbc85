"""Which start of a run may write to its folder: the newest, and no orphan of an earlier one.

The folder's lock keeps two live processes of one machine apart. Where it doesn't reach (a shared
disk without locks, a node that was given up for dead and comes back), each start leaves a mark of
its own, and a process that finds another's has to end.
"""

import os
import re
import uuid
from pathlib import Path

from data_pipeline.durable import write_whole
from data_pipeline.errors import StorageError
from distrain.coordinator.run_layout import GENERATION
from distrain.coordinator.stops import BEGAN
from distrain.errors import ConfigError

_MARK = re.compile(r"(\d{1,18}) [0-9a-f]{32}\b")
_MOST_BYTES = 300


class Generation:
    """The mark of one start; `number` counts a run's starts from 1."""

    def __init__(self, folder: Path) -> None:
        """Supersedes the start before.

        Raises:
            StorageError: the mark can't be written.
        """
        self._folder = folder
        before = _MARK.match(mark_in(folder))
        self.number = 1 + (int(before[1]) if before else 0)
        self._mark = f"{self.number} {uuid.uuid4().hex} {_launch()}".strip()
        write_whole(folder / GENERATION, f"{self._mark}\n".encode())

    def check(self) -> None:
        """Goes on only where no newer start has taken the run over.

        Raises:
            ConfigError: one has; this process must not write any more.
        """
        if mark_in(self._folder) != self._mark:
            raise ConfigError(
                f"a newer start has taken over the run in {self._folder}: this one (start "
                f"{self.number}) ends, and writes no more"
            )


def mark_in(folder: Path) -> str:
    """The mark of the newest start, whatever it holds; empty where there was none.

    Raises:
        StorageError: it is there and can't be read.
    """
    path = folder / GENERATION
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode(errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def is_restart(folder: Path) -> bool:
    """Whether the workers were started again by the launcher that made the newest start, too."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    return mark_in(folder).partition(" ")[2].partition(" ")[2] == _launch()


def _launch() -> str:
    """What tells one launch from another: our launcher's begin, or the name that torchrun has."""
    return os.environ.get(BEGAN) or os.environ.get("TORCHELASTIC_RUN_ID", "")
