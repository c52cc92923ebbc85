"""Scripts on workers, and the folder of a run as the coordinator finds it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distrain.coordinator.run_folder import RunFolder
from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, Completed


@pytest.fixture(scope="session")
def run_program(distrain: Callable[..., Completed]) -> Callable[..., None]:
    """Runs a script of tests/programs on some workers, and expects it to end well."""

    def run(name: str, workers: int, *arguments: object) -> None:
        command = distrain_alone if workers == 1 else distrain
        done = command("launch", "--workers", workers, PROGRAMS / name, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def logged_run(tmp_path: Path) -> Iterator[RunFolder]:
    """A run's folder, whose log tells of 9 steps; there is no checkpoint."""
    with RunFolder(tmp_path / "run", {"seed": 1}, fresh=False) as folder:
        folder.begin({}, {"world_size": 1}, 1, 9, goes_on=False)
        steps = [json.dumps({"event": "step", "step": step}) + "\n" for step in range(1, 10)]
        (folder.path / "events.jsonl").write_text("".join(steps))
        yield folder
