"""A worker's clock that is set an hour off."""

import subprocess
from pathlib import Path
from shutil import which

from tests.conftest import PROGRAMS
from tests.faults.job import STEPS
from tests.faults.trial import WORKERS, Injection, MissingToolError, Plant, Trial


def clock_library(folder: Path) -> Path:
    """`programs/wall_clock.c`, compiled."""
    if which("cc") is None:
        raise MissingToolError("there is no C compiler called cc")
    library = folder / "wall_clock.so"
    source = PROGRAMS / "wall_clock.c"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    return library


def set_off(seconds: int) -> Injection:
    """In mid-run, for one drawn worker; as when a clock is set, no time passes by it."""

    def inject(trial: Trial) -> None:
        call, rank = trial.draw.randint(2, STEPS - 4), trial.draw.randrange(WORKERS)
        trial.plant(Plant("update", rank, call, action="clock", clock_s=seconds))
        preloaded = {"LD_PRELOAD": str(clock_library(trial.folder))}
        # Checkpoints by the clock too: every 0.1 s.
        with trial.start("--checkpoint.every-seconds", 0.1, environment=preloaded) as run:
            trial.ends(run)
        off_s = int((trial.points / "done-0").read_text())
        assert abs(off_s - seconds) < 60, f"the clock was {off_s} s off"

    return inject
