"""The script that a command is to run, looked at before anything is started for it."""

from pathlib import Path

from distrain.errors import UsageError


def check_script(path: Path, which: str) -> None:
    """Refuses what can't be run; `which` says what to name instead.

    Raises:
        UsageError: it isn't there, or can't be read.
    """
    try:
        if not path.is_file():
            raise UsageError(f"there is no script {path}: name a Python file, {which}")
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"the script {path} can't be read: {error.strerror}") from error
