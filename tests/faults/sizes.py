"""Runs that grow and shrink within an epoch."""

import signal

from launch.resizing import resize
from tests.faults.deaths import kill_all
from tests.faults.job import STEPS_PER_EPOCH
from tests.faults.trial import Injection, Trial
from tests.run_folders import last_step, named


def resized(sizes: tuple[int, ...], *, killed: bool) -> Injection:
    """Stopped, or killed as by a power cut, in mid-epoch; then given with other workers."""

    def inject(trial: Trial) -> None:
        for workers in sizes[:-1]:
            with trial.start(workers=workers) as run:
                goal = last_step(trial.run) + trial.draw.randint(2, 20)
                goal += goal % STEPS_PER_EPOCH == 0  # within an epoch
                trial.until_step(run, goal)
                if killed:
                    kill_all(run)
                    trial.ends(run, -signal.SIGKILL)
                else:
                    run.process.terminate()
                    trial.ends(run, 75)
                trial.injected += 1
        with trial.start(workers=sizes[-1]) as run:
            trial.ends(run)

    return inject


def asked_for(trial: Trial) -> None:
    """4, 1, 2, 4, 3, then 1 workers, as `distrain resize` asks for, each within an epoch."""
    with trial.start(workers="1:4") as run:
        for number, workers in enumerate((1, 2, 4, 3, 1), 1):
            trial.until_a_later_moment(run)
            resize(trial.run, workers)
            trial.injected += 1
            run.until(lambda: len(named(trial.run, "workers")) >= number)  # noqa: B023
        trial.ends(run)
