"""How the environment comes to workers on other hosts: not in the command line that starts them.

horovodrun hands on all of its own in the words of a shell's command, which `ps` shows to every user
of every host. So it is given what programs need to start at all; the rest goes by a file.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

_FILE = "environment.json"

_SHOWN = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TERM|TMPDIR|VIRTUAL_ENV"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|GLIBC_TUNABLES|MALLOC_\w+|PYTHON[A-Z]*|SSH_\w+"
    r"|(HOROVOD|NCCL)_\w+|\w*CUDA_VISIBLE_DEVICES|TORCHELASTIC_RESTART_COUNT",
    re.ASCII,
)


def shown(environment: Mapping[str, str]) -> dict[str, str]:
    """What horovodrun is given: what starts it, ssh and Python, and what it sets itself."""
    return {name: text for name, text in environment.items() if _SHOWN.fullmatch(name)}


def leave_environment(folder: Path, environment: Mapping[str, str]) -> None:
    """Leaves the rest for the workers, in a file that nobody else can read."""
    rest = {name: text for name, text in environment.items() if not _SHOWN.fullmatch(name)}
    file = os.open(folder / _FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(file, "w") as stream:  # noqa: PTH123 - of a descriptor
        json.dump(rest, stream)


def take_environment(folder: Path) -> None:
    """Sets the rest, in a worker.

    Raises:
        FileNotFoundError: this host does not have the folder.
    """
    os.environ.update(json.loads((folder / _FILE).read_text()))
