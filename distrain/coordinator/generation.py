"""Which start of a run may write to its folder: the newest, and no orphan of an earlier one.

The folder's lock keeps two live processes of one machine apart. Where it doesn't reach (a shared
disk without locks, a node that was given up for dead and comes back), each start leaves a mark of
its own, and a process that finds another's has to end.
"""

import os
import re
import socket
import uuid
from pathlib import Path

from data_pipeline.durable import write_whole
from data_pipeline.errors import StorageError
from distrain.coordinator.run_layout import GENERATION
from distrain.coordinator.stops import BEGAN
from distrain.errors import ConfigError

LAUNCH = "DISTRAIN_LAUNCH"
"""Environment variable: a name of the launch that the launchers of several machines share."""

WORKERS = "DISTRAIN_WORKERS"
"""Environment variable: the numbers of workers that the launcher may be asked for, as MIN:MAX."""

HAS_STEPPED = "DISTRAIN_HAS_STEPPED"
"""Environment variable: the names of launches in which this run has done steps before this start.

Several where machines of one launch have met again in another, after the loss of one.
"""

NAMES_SEPARATOR = "|"

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
    return launch_in(folder) == _launch()


def launch_in(folder: Path) -> str:
    """What tells the launch that made the newest start from others; empty where there was none."""
    return mark_in(folder).partition(" ")[2].partition(" ")[2]


def refuse_stranger(folder: Path) -> None:
    """Refuses a folder that a run which is going on has not been in: it would begin anew.

    After the loss of a machine another's worker may be rank 0, and its disk another one.

    Raises:
        ConfigError: this launch's run has done steps, and the folder's newest start isn't its.
    """
    stepped = os.environ.get(HAS_STEPPED, "").split(NAMES_SEPARATOR)
    if stepped != [""] and launch_in(folder) not in (_launch(), *stepped):
        host = socket.gethostname()
        raise ConfigError(
            f"the run goes on with rank 0 on {host}, and {folder} is not its folder there, or not "
            "any more: put run.dir on a disk that all machines share, then run the same command "
            "again where the run's folder is"
        )


def _launch() -> str:
    """What tells one launch from another: our launcher's begin, or the name that torchrun has."""
    own = os.environ.get(LAUNCH) or os.environ.get(BEGAN)
    return own or os.environ.get("TORCHELASTIC_RUN_ID", "")
