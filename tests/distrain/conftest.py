"""Scripts on workers."""

from collections.abc import Callable

import pytest

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
