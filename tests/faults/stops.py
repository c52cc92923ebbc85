"""Runs that are asked to stop at any moment, and go on with the same command."""

import signal
import time

from tests.faults.trial import Injection, Trial
from tests.run_folders import status
from tests.started import Started

USUAL_S = 5.0
"""About what the whole command takes: a stop may come at any moment of it, or too late."""


def stopped_by(number: signal.Signals) -> Injection:
    """Once in mid-run, then up to three times at any moment from the command's begin."""

    def inject(trial: Trial) -> None:
        with trial.start() as run:
            trial.until_a_moment(run)
            ask(trial, run, number)
        for _ in range(3):
            if not trial.is_done:
                with trial.start() as run:
                    time.sleep(trial.draw.uniform(0.0, USUAL_S))
                    ask(trial, run, number)

    return inject


def ask(trial: Trial, run: Started, number: signal.Signals) -> None:
    """Sends the signal: to the launcher, or for Ctrl-C to all of its group, as a terminal does."""
    has_begun = bool(run.workers())
    if run.process.poll() is None:
        if number == signal.SIGINT:
            run.ctrl_c()
        else:
            run.process.send_signal(number)
        trial.injected += 1
    # Python itself ends by a signal until the program has begun, and nothing has been done then;
    # so does a launcher between its run's end and its own.
    by_python = (-number, 128 + number)
    trial.ends(run, 0, 75, *by_python)
    if has_begun and run.ends() in by_python:
        assert status(trial.run)["state"] == "done"
