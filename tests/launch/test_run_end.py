"""What a run's folder tells a launcher that was away when the run has ended."""

import json
from pathlib import Path

import pytest

from distrain.coordinator.generation import LAUNCH, Generation
from launch.failure import Cause
from launch.machines.run_end import RunEnd, end_in

OURS = "12.5 node-0"


def leave(folder: Path, monkeypatch: pytest.MonkeyPatch, **status: object) -> Path:
    """A run whose newest start is of our launch."""
    monkeypatch.setenv(LAUNCH, OURS)
    Generation(folder)
    (folder / "status.json").write_text(json.dumps(status))
    return folder


ENDED = {"reason": "a reason", "exit_code": 70}


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ({"state": "done", "reason": "finished", "exit_code": 0}, RunEnd(None)),
        ({"state": "failed"} | ENDED, RunEnd(Cause(0, 70, "a reason"))),
        (
            {"state": "stopped", "reason": "stopped by SIGTERM", "exit_code": 75},
            RunEnd(Cause(0, 75, "stopped by SIGTERM")),
        ),
    ],
)
def test_an_end_is_one_whoever_has_seen_it(
    status: dict[str, object], end: RunEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = leave(tmp_path, monkeypatch, **status)
    assert end_in(run, OURS) == end
    assert end_in(run, "another launch") is None, "it may have begun before that one's end"


@pytest.mark.parametrize(
    "status",
    [
        {"state": "running"},
        {"state": "failed", "reason": "a connection was lost", "exit_code": 69},
        {
            "state": "stopped",
            "reason": "stopped by a change of the number of workers",
            "exit_code": 75,
        },
        {"state": "failed", "reason": "no code"},
        {},
    ],
)
def test_what_a_restart_goes_on_from_is_no_end(
    status: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end_in(leave(tmp_path, monkeypatch, **status), OURS) is None


def test_a_folder_that_is_not_seen_tells_nothing(tmp_path: Path) -> None:
    assert end_in(tmp_path / "elsewhere", OURS) is None
    (tmp_path / "status.json").write_text("{")
    assert end_in(tmp_path, "") is None
