"""Workers of a real run that part from the others: by a flipped bit, or because one is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from distrain.errors import ExitCode
from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, Completed, clean_environment
from tests.run_folders import named, result, status, told
from tests.started import random_moments

LIMIT_S = 600.0
"""That it ends within it is the claim where a worker sleeps, or others may wait, for longer."""
STEPS, CHECK_EVERY, SAVE_EVERY = 30, 3, 2
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node")
OURS = ("-m", "launch.main", "launch", "--workers")


def train(
    folder: Path,
    workers: int,
    parting: str = "nothing 0 0 0",
    *,
    check_every: int = CHECK_EVERY,
    timeout_s: float = 200.0,
    launcher: tuple[str, ...] = OURS,
) -> Completed:
    program = (PROGRAMS / "parting.py", folder, check_every, timeout_s)
    return subprocess.run(
        [sys.executable, *launcher, str(workers), *map(str, program)],
        env=clean_environment() | {"PARTING": parting},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def to_end(folder: Path) -> None:
    program = (PROGRAMS / "parting.py", folder, CHECK_EVERY, 200.0)
    done = distrain_alone("launch", "--workers", 1, *program)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    to_end(folder)
    return folder


@pytest.mark.parametrize(
    ("workers", "what"),
    [(2, "weight"), (2, "momentum"), (3, "weight"), (4, "momentum")],
)
def test_a_flipped_bit_is_caught_at_the_next_check_by_name_and_the_run_goes_on_from_before(
    tmp_path: Path, unbroken: Path, workers: int, what: str
) -> None:
    random = random_moments()
    step, rank = random.randrange(2, STEPS - 1), random.randrange(workers)
    bit = random.randrange(14, 23)  # lower ones of a momentum are lost when it is rounded
    folder = tmp_path / "run"
    done = train(folder, workers, f"{what} {rank} {step} {bit}")
    print(f"{what}, rank {rank}, step {step}, bit {bit}: {done.stderr}")
    assert done.returncode == ExitCode.FAULT
    looked_at = [at for at in range(STEPS + 1) if not at % CHECK_EVERY or not at % SAVE_EVERY]
    caught_at = min(at for at in looked_at if at > step)
    alike_after = max(at for at in looked_at if at <= step)
    ranks = "ranks 0 and 1 hold different states" if workers == 2 else f"rank {rank} holds another"
    assert ranks in done.stderr
    assert f"after step {caught_at}: parameter 2.weight is the first tensor th" in done.stderr
    # A weight is moved by the same momentum everywhere, but no weight's momentum by the same one.
    assert ("(then momentum_buffer of 2.weight)" in done.stderr) == (what == "momentum")
    assert f"All were alike after step {alike_after}, and" in done.stderr
    assert "Traceback" not in done.stderr
    said = status(folder)
    assert (said["state"], said["exit_code"]) == ("failed", 70)
    assert not (folder / "model.safetensors").exists()
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == [f"step-{at:09d}" for at in range(SAVE_EVERY, step + 1, SAVE_EVERY)][-2:]
    to_end(folder)
    assert (result(folder), told(folder)) == (result(unbroken), told(unbroken))


def test_without_checks_a_flipped_bit_is_in_the_result(tmp_path: Path, unbroken: Path) -> None:
    done = train(tmp_path / "run", 2, "weight 0 7 20", check_every=0)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "run") != result(unbroken)


def test_a_look_inside_says_the_same_at_any_number_of_workers(
    tmp_path: Path, unbroken: Path
) -> None:
    def looks(folder: Path) -> list[dict[str, object]]:
        return [{**event, "time": 0} for event in named(folder, "inspect")]

    assert train(tmp_path / "run", 3).returncode == 0
    assert [event["step"] for event in looks(unbroken)] == list(range(3, STEPS + 1, 3))
    assert looks(tmp_path / "run") == looks(unbroken)
    first = looks(unbroken)[0]
    parameters = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    for kind in ("gradient_norm", "weight_norm", "update_ratio"):
        assert list(first[kind]) == parameters  # type: ignore[call-overload]


@pytest.mark.parametrize("launcher", [OURS, TORCHRUN])
def test_a_worker_that_ends_early_ends_the_others_which_say_who(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    # At once, and not after the time limit of an exchange.
    done = train(tmp_path / "run", 3, "exit 1 7 0", timeout_s=2 * LIMIT_S, launcher=launcher)
    assert done.returncode == (ExitCode.WORKER_LOST if launcher == OURS else 1)
    assert "rank 1 has ended early: the others waited in an exchange that it did not" in done.stderr
    assert "in step 9 or after step 8" in done.stderr
    assert status(tmp_path / "run")["exit_code"] == ExitCode.WORKER_LOST


@pytest.mark.parametrize("launcher", [OURS, TORCHRUN])
def test_a_worker_that_stands_still_ends_the_others_after_the_limit(
    tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    # One of the others comes to the exchange well after the first: it is late, and not missing.
    plan = "sleep 2 7 0;late 0 7 4"
    done = train(tmp_path / "run", 3, plan, timeout_s=10.0, launcher=launcher)
    assert done.returncode == (ExitCode.WORKER_LOST if launcher == OURS else 1)
    assert "rank 2 stands still for longer than parallel.timeout_s: the others" in done.stderr
    assert status(tmp_path / "run")["exit_code"] == ExitCode.WORKER_LOST


def test_an_error_of_one_worker_is_told_and_not_the_loss_that_follows(tmp_path: Path) -> None:
    done = train(tmp_path / "run", 3, "error 1 7 0")
    assert done.returncode == ExitCode.FAULT
    assert done.stderr.startswith("distrain (rank 1): Traceback")
    assert done.stderr.rstrip().endswith("ValueError: planted")


def test_a_worker_that_is_to_train_for_less_is_refused_before_anything_is_done(
    tmp_path: Path,
) -> None:
    done = train(tmp_path / "run", 3, "epochs 1 0 0")
    assert done.returncode == ExitCode.CONFIG
    assert "ranks [1] were given another run than rank 0: epochs is 6 on rank 0 and " in done.stderr
    assert not (tmp_path / "run" / "events.jsonl").exists()
