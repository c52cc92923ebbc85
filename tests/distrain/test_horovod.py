"""Horovod's exchanges carry the bits that torch's carry, and who has no Horovod is told."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distrain.errors import ConfigError, ExitCode, UsageError
from distrain.parallel import world
from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, TIMEOUT_S, Completed, clean_environment
from tests.run_folders import result
from tests.started import JOB, unbroken

GROUP = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "HOROVOD_SIZE")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in GROUP:
        monkeypatch.delenv(name, raising=False)


def horovodrun(workers: int, *command: object) -> Completed:
    """Horovod's own launcher, on loopback."""
    launcher = (Path(sys.executable).with_name("horovodrun"), "-np", workers, "--gloo")
    return subprocess.run(
        [*map(str, (*launcher, "--network-interfaces", "lo", sys.executable, *command))],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.horovod
@pytest.mark.parametrize("workers", [1, 3])
def test_its_exchanges_give_what_torchs_give(tmp_path: Path, workers: int) -> None:
    done = horovodrun(workers, "-W", "error", PROGRAMS / "exchanges.py", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(tmp_path.glob("agreed-*"))) == workers


@pytest.mark.horovod
def test_every_way_to_sum_gives_the_bits_of_one_worker(
    distrain: Callable[..., Completed], run_program: Callable[..., None], tmp_path: Path
) -> None:
    alone, ours = tmp_path / "alone.json", tmp_path / "ours.json"
    # Two optimizers: each updates what has been summed, whatever has carried it.
    run_program("sums.py", 1, alone, "torch", "sgd,adamw")
    program = (PROGRAMS / "sums.py", ours, "horovod", "sgd,adamw")
    done = distrain("launch", "--workers", 3, "--backend", "horovod", *program)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(ours.read_text()) == json.loads(alone.read_text())


@pytest.mark.horovod
def test_under_horovodrun_a_job_gives_the_bits_of_the_torch_backend(
    digits: Path, tmp_path: Path
) -> None:
    short, folder = ("--training.epochs", 2), tmp_path / "run"
    where = ("--data.path", digits, "--run.dir", folder, "--parallel.backend", "horovod")
    done = horovodrun(2, "-m", "launch.main", "train", JOB, *short, *where)
    assert done.returncode == 0, done.stdout + done.stderr
    assert result(folder) == unbroken(digits, *short)[0]
    nested = ("-m", "launch.main", "train", JOB, *short, *where, "--workers", 2)
    own = ("train", JOB, *short, *where, "--max-restarts", 1)
    for done in (horovodrun(2, *nested), distrain_alone(*own, environment={"HOROVOD_SIZE": "2"})):
        assert done.returncode != 0
        assert "each of horovodrun's workers would start workers of its own" in done.stderr


@pytest.mark.horovod
def test_under_horovodrun_the_torch_backend_is_refused(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    where = ("--data.path", digits, "--run.dir", folder)
    done = horovodrun(2, "-m", "launch.main", "train", JOB, *where)
    assert done.returncode != 0
    assert "these would be 2 separate trainings: set parallel.backend" in done.stderr
    assert not folder.exists()


def test_horovods_workers_are_no_trainings_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(UsageError, match=r"HOROVOD_SIZE is 2, but parallel.backend is") as caught:
        world.join()
    assert 'Trainer(backend="horovod")' in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE
    monkeypatch.setenv("HOROVOD_SIZE", "1")
    assert world.join().size == 1


@pytest.mark.horovod
def test_torchs_workers_are_not_horovods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = r"these 3 workers were started for torch.*`horovodrun -np 3 --gloo`, or set"
    with pytest.raises(UsageError, match=message):
        world.join("horovod")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel.backend is 'mpi'; give"):
        world.join("mpi")  # type: ignore[arg-type]


def test_without_horovod_a_program_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "horovod.torch", None)
    with pytest.raises(ConfigError, match=r"can't be imported here.*install it by `make horovod`"):
        world.join("horovod")
