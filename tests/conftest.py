"""Fixtures that start real processes, and the real data that they train on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from data_pipeline.sources.bundled import make_bundled

ROOT = Path(__file__).parent.parent
PROGRAMS = Path(__file__).parent / "programs"

Completed = subprocess.CompletedProcess[str]
TIMEOUT_S = 240


SHORT_TESTS = ROOT / "tests" / "data_pipeline"

HOROVOD_IS_REQUIRED = "DISTRAIN_REQUIRE_HOROVOD"
"""Environment variable: set where no test may be left out, as in CI."""


def pytest_configure() -> None:
    # How long an example takes says nothing of what it claims; tests share the cores.
    settings.register_profile("distrain", deadline=None)
    settings.load_profile("distrain")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # So a shell starts what is in the background; programs that are started here would have it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get(HOROVOD_IS_REQUIRED) and find_spec("horovod") is None:
        raise pytest.UsageError(f"{HOROVOD_IS_REQUIRED} is set, and Horovod is not installed")


def pytest_report_header() -> str:
    if find_spec("horovod") is not None:
        return "horovod: installed"
    return "horovod: not installed, so its tests are left out; `make horovod` installs it"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests of Horovod out where there is none; the header says so.

    What takes long comes first, so that no process works alone on it in the end.
    """
    items.sort(key=lambda item: SHORT_TESTS in item.path.parents)
    if find_spec("horovod") is None:
        left_out = [item for item in items if item.get_closest_marker("horovod")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def clean_environment() -> dict[str, str]:
    """This process's environment without what a launcher would have set, warnings being errors."""
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@pytest.fixture(scope="session")
def distrain() -> Callable[..., Completed]:
    """Runs the `distrain` command in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None) -> Completed:
        return subprocess.run(
            [sys.executable, "-m", "launch.main", *map(str, arguments)],
            cwd=cwd,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits data set, in three shards a part."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make_bundled("digits", folder, rows_per_shard=500)
    return folder


@pytest.fixture(scope="session")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The iris data set, 40% of it for validation."""
    folder = tmp_path_factory.mktemp("data") / "iris"
    make_bundled("iris", folder, validation_fraction=0.4)
    return folder
