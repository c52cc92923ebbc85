"""Signals that come to a launcher in the very moment in which it does something else."""

import os
import signal
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from pathlib import Path

import pytest

from distrain.coordinator.stops import handlers_as_before
from launch.failure import TerminatedError
from launch.supervision import Supervision


def test_a_signal_takes_no_exit_code_from_who_is_just_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_signed = forkserver.read_signed

    def read_when_asked_to_stop(sentinel: int) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return int(read_signed(sentinel))

    worker = get_context("forkserver").Process(target=os._exit, args=(3,))
    worker.start()
    wait([worker.sentinel])
    monkeypatch.setattr(forkserver, "read_signed", read_when_asked_to_stop)
    with handlers_as_before():
        kill = worker.join
        watch = Supervision(lambda: {0: worker}, kill, tmp_path, grace_s=30.0, max_restarts=0)
        assert watch.exit_codes() == {0: 3}
    assert watch.is_stopping


class Struck(Supervision):
    """Is asked to end just as it begins to wait for other machines."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "_waits" and value:
            os.kill(os.getpid(), signal.SIGTERM)
        super().__setattr__(name, value)


def test_a_signal_that_comes_as_a_wait_begins_ends_that_wait(tmp_path: Path) -> None:
    with handlers_as_before():
        watch = Struck(dict, lambda: None, tmp_path, grace_s=30.0, max_restarts=0)
        with pytest.raises(TerminatedError), watch.waiting():
            pytest.fail("it waits")
