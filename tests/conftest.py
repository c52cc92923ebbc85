"""Fixtures that start real processes, and the real data that they train on."""

import os
import shutil
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

SLURM_IS_REQUIRED = "DISTRAIN_REQUIRE_SLURM"
"""The same, for the tests that start a SLURM of their own."""

NEEDED_FOR_SLURM = (
    *("slurmctld", "slurmd", "sbatch", "munged"),
    *("unshare", "nsenter", "setpriv", "ip"),
)


def commands_path() -> str:
    """Where commands are looked for; Debian has daemons where not every user does."""
    return os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def has_slurm() -> bool:
    """Whether all is installed that `tests/slurm_cluster.py` starts, and this user may start it."""
    found = (shutil.which(name, path=commands_path()) for name in NEEDED_FOR_SLURM)
    return os.geteuid() == 0 and all(found)


def pytest_configure() -> None:
    # How long an example takes says nothing of what it claims; tests share the cores.
    settings.register_profile("distrain", deadline=None)
    settings.load_profile("distrain")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # So a shell starts what is in the background; programs that are started here would have it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get(HOROVOD_IS_REQUIRED) and find_spec("horovod") is None:
        raise pytest.UsageError(f"{HOROVOD_IS_REQUIRED} is set, and Horovod is not installed")
    if os.environ.get(SLURM_IS_REQUIRED) and not has_slurm():
        raise pytest.UsageError(
            f"{SLURM_IS_REQUIRED} is set, and slurm-wlm and munge are not installed, or this is "
            "not root"
        )


def pytest_report_header() -> list[str]:
    horovod = "not installed, so its tests are left out; `make horovod` installs it"
    slurm = "not installed, or this is not root, so its tests are left out (slurm-wlm, munge)"
    return [
        f"horovod: {'installed' if find_spec('horovod') is not None else horovod}",
        f"slurm: {'installed' if has_slurm() else slurm}",
    ]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the tests of Horovod and SLURM out where there is none; the header says so.

    What takes long comes first, so that no process works alone on it in the end.
    """
    items.sort(key=lambda item: SHORT_TESTS in item.path.parents)
    is_there = {"horovod": find_spec("horovod") is not None, "slurm": has_slurm()}
    missing = [marker for marker, there in is_there.items() if not there]
    left_out = [item for item in items if any(map(item.get_closest_marker, missing))]
    if left_out:
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
