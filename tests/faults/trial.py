"""One try of a fault: a run that it is injected into, until that has ended with its result."""

import functools
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.job import SHARDED, STEPS, VARIANTS, start, train_alone
from tests.faults.oracle import judge
from tests.run_folders import Outcome, last_step, outcome
from tests.started import Started

WORKERS = 3
STEP_S = "0.02"
HELD_AFTER = 5
"""Steps after the one that was waited for."""


class MissingToolError(Exception):
    """This machine lacks what a fault is injected with; the message names it and where it is."""


@dataclass(frozen=True)
class Plant:
    """What `programs/fault_points.py` is to do in a worker; `rank` None is any."""

    point: str
    rank: int | None = None
    call: int = 1
    delay_s: float = 0.0
    action: str = "kill"
    clock_s: int = 0


class Trial:
    """What a fault is injected into.

    Attributes:
        folder: For all files of this try.
        run: The run's folder.
        draw: The only source of what is random in it.
        variant: Of the job.
    """

    def __init__(self, digits: Path, folder: Path, draw: random.Random, variant: str) -> None:
        self.digits, self.folder, self.draw, self.variant = digits, folder, draw, variant
        self.run, self.points = folder / "run", folder / "points"
        self._injected = 0
        self._ended: int | None = None
        self._planted = 0

    @property
    def injected(self) -> int:
        """How often the fault has struck so far; the run is let go on with the next one."""
        return self._injected

    @injected.setter
    def injected(self, number: int) -> None:
        self._injected = number
        self.let_go_on()

    @property
    def is_done(self) -> bool:
        """Whether the run has ended well."""
        return self._ended == 0

    def start(
        self,
        *more: object,
        workers: int | str = WORKERS,
        environment: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> Started:
        """Gives the command, for the first time or again."""
        restarts = ("--max-restarts", 40) if workers != 1 else ()
        return start(
            *(self.variant, self.digits, self.run, self.points),
            *("--workers", workers, *restarts, *more),
            environment={"FAULT_STEP_S": STEP_S, **(environment or {})},
            within=within,
        )

    def plant(self, *plants: Plant) -> None:
        """What is to happen within the workers of the commands to come, one after the other."""
        self.points.mkdir(parents=True, exist_ok=True)
        content = json.dumps([vars(plant) for plant in plants])
        (self.points / "plants.json").write_text(content)
        self._planted = len(plants)

    def done(self) -> int:
        """How many of the plants have struck."""
        return len(list(self.points.glob("done-*")))

    def until_a_moment(self, run: Started, earliest: int = 1, latest: int = STEPS - 10) -> None:
        """Waits until a drawn step is done, and then some drawn part of one more."""
        self.until_step(run, self.draw.randint(earliest, latest))
        time.sleep(self.draw.uniform(0.0, 0.04))

    def until_step(self, run: Started, goal: int) -> None:
        """Waits until a step is done; on a busy machine the run then waits for the fault.

        Some steps later, so that it goes on as usual elsewhere.
        """
        aside = self.points / "hold.partial"
        aside.write_text(str(goal + HELD_AFTER))
        aside.replace(self.points / "hold")
        run.until(lambda: last_step(self.run) >= goal)

    def let_go_on(self) -> None:
        """The fault is there; or nothing more is waited for."""
        (self.points / "hold").unlink(missing_ok=True)

    def until_a_later_moment(self, run: Started) -> None:
        """The same, within the next steps; where few are left, at once."""
        before = min(last_step(self.run), STEPS - 20)
        self.until_a_moment(run, before + 1, before + 8)

    def ends(self, run: Started, *codes: int) -> None:
        """Waits for the command's end, with one of these exit codes (0 where none is given)."""
        self.let_go_on()
        self._ended = run.ends()
        assert self._ended in (codes or (0,)), f"exit code {self._ended}: {run.said}"

    def conclude(self) -> int:
        """Gives the command again unless the run has ended well, and judges.

        Returns:
            How many steps were done again.
        """
        if not self.is_done:
            with self.start() as run:
                self.ends(run)
        done = self.done()
        assert done == self._planted, f"of {self._planted} planted faults {done} have struck"
        self.injected += done
        assert self.injected, "no fault was injected"
        return judge(self.run, self.points, unbroken(self.digits, self.variant))


def unbroken(digits: Path, variant: str) -> Outcome:
    """The outcome of a training where nothing happens, on one worker; who shares what is free."""
    return _unbroken(digits, "plain" if variant == SHARDED else variant)


@functools.cache
def _unbroken(digits: Path, variant: str) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="unbroken-") as name:
        run, points = Path(name) / "run", Path(name) / "points"
        done = train_alone(variant, digits, run, points)
        assert (done.returncode, done.stderr) == (0, "")
        found = outcome(run)
        again = judge(run, points, found)
        assert again == 0, f"nothing happened to it, and {again} steps were done again"
        return found


Injection = Callable[[Trial], None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: As the table of the README says it.
        inject: Starts the job and has the fault happen to it, once or several times.
    """

    name: str
    inject: Injection


@dataclass(frozen=True)
class Record:
    """What became of one try: a row of `results/`."""

    fault: str
    variant: str
    injected: int
    steps_again: int
    seconds: float


def try_fault(
    fault: Fault, digits: Path, folder: Path, seed: int, variant: str | None = None
) -> Record:
    """Injects a fault at the moments that the seed gives, and has the oracle judge.

    `variant` of the job is drawn as well, unless it is given.

    Raises:
        AssertionError: something was lost.
        MissingToolError: it can't be injected on this machine.
    """
    began = time.monotonic()
    folder.mkdir()
    draw = random.Random(f"{seed} {fault.name}")
    trial = Trial(digits, folder, draw, variant or draw.choice(list(VARIANTS)))
    fault.inject(trial)
    again = trial.conclude()
    seconds = round(time.monotonic() - began, 1)
    return Record(fault.name, trial.variant, trial.injected, again, seconds)
