"""What is to become of the workers' output: `--logs` and `--log-dir` of the command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from distrain.coordinator.run_layout import LOGS
from launch.output.log_place import FolderPlace, LogPlace, RunPlace
from launch.output.output_pipes import ALL, RANK_0


@dataclass(frozen=True)
class Logs:
    """Which workers' output is shown, and where all of it is kept.

    Attributes:
        shown: One of `output_pipes.CHOICES`.
        folder: Takes the files, where one was named.
        run: The run's folder, which takes them where none was.
        is_asked_for: Whether the command line says anything of it.
    """

    shown: str
    folder: Path | None
    run: Path | None
    is_asked_for: bool

    @classmethod
    def of_run(cls, run: Path, shown: str | None, folder: Path | None) -> Self:
        """A job's: rank 0 tells how it goes, the others' is in the files."""
        return cls(shown or RANK_0, folder, run, bool(shown or folder))

    @classmethod
    def of_script(cls, shown: str | None, folder: Path | None, *, on_terminal: bool) -> Self | None:
        """A script's: all of it is shown, since the launcher knows of no run's folder.

        None where nothing is asked for and no person looks on: who reads a script's output finds it
        as the script has written it.
        """
        is_asked_for = bool(shown or folder)
        if not is_asked_for and not on_terminal:
            return None
        return cls(shown or ALL, folder, None, is_asked_for)

    def place(self) -> LogPlace | None:
        """Where the files are to be; None where there are to be none.

        Raises:
            StorageError: the folder that was named can't be made.
        """
        if self.folder is not None:
            return FolderPlace(self.folder)
        return None if self.run is None else RunPlace(self.run)

    def __str__(self) -> str:
        """For a person."""
        kept = self.run / LOGS if self.folder is None and self.run is not None else self.folder
        return f"{self.shown} on the terminal, {f'all in {kept}' if kept else 'no files'}"
