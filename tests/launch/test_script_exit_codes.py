"""How a script's run ends under `distrain launch`, and under a plain torchrun, which exits with 1.

The command's own codes are in test_exit_codes.py; those of scripts that are no runs, in
test_workers.py.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import run as torchrun

from tests.alone import distrain_alone, script_alone
from tests.conftest import PROGRAMS, Completed
from tests.run_folders import last_step, status

Run = Callable[..., Completed]

ENDING = PROGRAMS / "ending.py"
STEPS_BEFORE = 3


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("data", 65, "no data set at"),
        ("fault", 70, "ValueError: planted in the model"),
        ("storage", 74, "the run folder /proc/distrain-run cannot be written"),
        ("stop", 75, "stopped by SIGTERM, with everything saved"),
        ("config", 78, "global_batch is 0; it must be 1 or more"),
    ],
)
def test_launch_with_one_worker(
    digits: Path, tmp_path: Path, how: str, code: int, said: str
) -> None:
    folder = tmp_path / "run"
    done = distrain_alone("launch", "--workers", 1, ENDING, how, digits, folder)
    assert done.returncode == code
    assert done.stderr.count(said) == 1
    if how in ("fault", "stop"):
        assert status(folder)["exit_code"] == code
    else:
        assert not folder.exists()


def test_launch_with_two_workers_one_of_which_is_preempted(
    distrain: Run, digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = distrain("launch", "--workers", 2, ENDING, "stop", digits, folder)
    assert done.returncode == 75
    assert done.stderr.count("with everything saved") == 1
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("stopped", 75)


@pytest.mark.parametrize(
    ("how", "workers", "state", "code"),
    [("fault", 1, "failed", 70), ("kill", 2, "failed", 69), ("stop", 2, "stopped", 75)],
)
def test_under_torchrun_the_status_says_what_its_exit_code_does_not(
    digits: Path, tmp_path: Path, how: str, workers: int, state: str, code: int
) -> None:
    """Rank 0 writes it, though torchrun ends it as soon as another worker has failed."""
    folder = tmp_path / "run"
    assert under_torchrun(workers, how, digits, folder).returncode == 1
    said = status(folder)
    assert (said["state"], said["exit_code"]) == (state, code)
    if how == "kill":
        assert said["reason"].startswith("rank 1 has ended early")
        assert said["step"] == last_step(folder) == STEPS_BEFORE


@pytest.mark.parametrize(
    ("how", "said"), [("data", "no data set at"), ("storage", "/proc/distrain-run cannot be")]
)
def test_under_torchrun_a_run_that_cannot_be_says_why_and_leaves_nothing(
    digits: Path, tmp_path: Path, how: str, said: str
) -> None:
    done = under_torchrun(1, how, digits, tmp_path / "run")
    assert done.returncode == 1
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def under_torchrun(workers: int, how: str, digits: Path, folder: Path) -> Completed:
    arguments = ("--standalone", "--nproc-per-node", workers, ENDING, how, digits, folder)
    return script_alone(Path(torchrun.__file__), *arguments)
