"""Workers that hang or are slow: who it is and where it stands is named, and no bit is lost."""

import functools
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, TIMEOUT_S, clean_environment
from tests.run_folders import Outcome, events, last_step, named, outcome, status
from tests.started import Started, random_moments

PROGRAM = PROGRAMS / "hanging.py"
LIMIT_S = 4.0
"""Who writes to a busy disk may stand still for a while, and does not hang."""

LIMIT = {"HANG_TIMEOUT_S": str(LIMIT_S)}


def launch(folder: Path, workers: int, *options: object, **environment: str) -> Started:
    arguments = ("launch", "--workers", workers, *options, PROGRAM, folder)
    return Started(*arguments, environment=LIMIT | environment)


@functools.cache
def unbroken(epochs: int = 4) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        command = ("launch", "--workers", 1, PROGRAM, Path(folder) / "run")
        done = distrain_alone(*command, environment=LIMIT | {"EPOCHS": str(epochs)})
        assert (done.returncode, done.stderr) == (0, "")
        return outcome(Path(folder) / "run")


def stacks(folder: Path, step: int) -> dict[int, str]:
    """What was kept of each rank, in a step counted from 1."""
    found = sorted((folder / "stacks").glob(f"step-{step:09d}-rank-*.txt"))
    return {int(path.stem.rpartition("-")[2]): path.read_text() for path in found}


def the_hang(folder: Path) -> dict[str, Any]:
    (event,) = named(folder, "hang")
    return event


@pytest.mark.parametrize(
    ("plant", "phase", "step", "function", "said"),
    [
        # Two micro-batches a step: the sixth is the third step's.
        ("loader:deadlock:5:1", "loading", 3, "sleep_in_a_deadlock", "waiting for the samples of"),
        ("forward:hold:9:1", "forward", 5, "hold_the_interpreter", "in the forward pass of step 5"),
        ("forward:stop:9:0", "forward", 5, "stop_this_process", "(a signal has stopped its"),
    ],
)
def test_a_hang_is_named_with_its_stacks_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, plant: str, phase: str, step: int, function: str, said: str
) -> None:
    folder, rank = tmp_path / "run", int(plant[-1])
    planted = {"PLANT": plant, "PLANTED": str(tmp_path / "planted")}
    with launch(folder, 2, "--max-restarts", 1, **planted) as run:
        assert run.ends() == 0, run.said
    assert f"distrain (rank {rank}): rank {rank} on " in run.said
    assert said in run.said
    assert f"the stacks of all are in {folder / 'stacks'}" in run.said
    assert "(restart 1 of 1)" in run.said
    event = the_hang(folder)
    assert (event["rank"], event["phase"], event["step"]) == (rank, phase, step)
    found = stacks(folder, step)
    assert sorted(found) == [0, 1]
    assert function in found[rank]
    # The other is not blamed: it waits.
    assert function not in found[1 - rank]
    assert f"in an exchange of step {step}" in found[1 - rank]
    # Nor has the run gone on while the stacks were taken, for which a stopped worker is woken.
    (resumed,) = named(folder, "resume")
    assert resumed["step"] + resumed["steps_again"] <= step
    assert outcome(folder) == unbroken()


@pytest.mark.horovod
def test_a_hang_on_horovod_is_named_and_costs_no_bit_either(tmp_path: Path) -> None:
    folder, more = tmp_path / "run", ("--backend", "horovod", "--max-restarts", 1)
    planted = {"PLANT": "forward:stop:9:1", "PLANTED": str(tmp_path / "planted")}
    with launch(folder, 2, *more, **planted) as run:
        assert run.ends() == 0, run.said
    assert (the_hang(folder)["rank"], the_hang(folder)["step"]) == (1, 5)
    assert "stop_this_process" in stacks(folder, 5)[1]
    assert outcome(folder) == unbroken()


def test_a_worker_stopped_at_any_moment_is_named_among_three(tmp_path: Path) -> None:
    folder, moments, epochs = tmp_path / "run", random_moments(), 20
    rank, goal = moments.randrange(3), moments.randint(5, 60)
    with launch(folder, 3, "--max-restarts", 1, EPOCHS=str(epochs)) as run:
        run.until(lambda: last_step(folder) >= goal)
        run.worker(rank).send_signal(signal.SIGSTOP)
        assert run.ends() == 0, run.said
    assert the_hang(folder)["rank"] == rank
    assert f"rank {rank} on " in run.said
    assert "a signal has stopped its process" in run.said
    assert outcome(folder) == unbroken(epochs)


def test_a_run_that_hangs_again_in_the_same_step_ends_with_70(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launch(folder, 2, "--max-restarts", 9, PLANT="evaluation:deadlock:0:1") as run:
        assert run.ends() == 70
    assert "rank 1 on " in run.said
    assert "in the evaluation after step 4" in run.said
    assert "(restart 1 of 9)" in run.said
    assert "(restart 2 of 9)" not in run.said
    assert run.said.rstrip().endswith("it hung in this step before")
    assert "sleep_in_a_deadlock" in stacks(folder, 5)[1]


def test_peers_that_give_up_first_leave_the_stacks_of_the_one_that_they_waited_for(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    plant = {"PLANT": "forward:deadlock:9:1", "TIMEOUT_S": "6", "HANG_TIMEOUT_S": "60"}
    with launch(folder, 2, **plant) as run:
        assert run.ends() == 69
    assert "rank 1 stands still for longer than parallel.timeout_s" in run.said
    assert "sleep_in_a_deadlock" in stacks(folder, 5)[1]


def test_one_worker_in_its_launchers_process_finds_its_own_hang(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with launch(folder, 1, PLANT="evaluation:deadlock:1:0") as run:
        assert run.ends() == 70
    assert "rank 0 on " in run.said
    assert "in the evaluation after step 8" in run.said
    assert "sleep_in_a_deadlock" in stacks(folder, 9)[0]
    told, end = status(folder), events(folder)[-1]
    assert (told["state"], told["exit_code"]) == ("failed", 70)
    assert "in the evaluation after step 8" in told["reason"]
    assert (end["event"], end["exit_code"]) == ("end", 70)
    assert (end["rank"], end["step"], end["phase"]) == (0, 9, "evaluation")


def test_a_worker_without_a_launcher_of_ours_finds_its_own_hang(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ended = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(PROGRAM), str(folder)],
        env=clean_environment() | LIMIT | {"PLANT": "loader:loop:5:1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 1  # torchrun's own
    assert "distrain (rank 1): rank 1 on " in ended.stderr
    assert "waiting for the samples of step 3" in ended.stderr
    assert "exitcode: 70" in ended.stderr.replace(" :", ":").replace("  ", " ")
    assert "rank 0 on " not in ended.stderr
    assert "loop_without_end" in stacks(folder, 3)[1]


def test_a_slow_rank_is_named_and_nothing_is_taken_for_a_hang(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    slow = {"PLANT": "forward:slow:0:1", "EPOCHS": "6", "WINDOW_S": "1"}
    with launch(folder, 2, **slow) as run:
        assert (run.ends(), run.said) == (0, "")
    told = [event for event in named(folder, "slow_rank") if event["phase"] == "forward"]
    assert {event["rank"] for event in told} == {1}
    first = told[0]
    # Two micro-batches, 100 ms each; on a busy machine the other one is not quick either.
    assert first["seconds"] - first["usual_s"] > 0.1
    assert "is slow, in the forward pass: " in first["text"]
    times = [event["seconds"] for event in named(folder, "phases")]
    assert all(seconds["forward"] > 0.09 for seconds in times)
    # It took longer than a hang may, and so did the waits of the other rank in all.
    begin, end = events(folder)[0]["time"], events(folder)[-1]["time"]
    assert end - begin > LIMIT_S
    assert outcome(folder) == unbroken(6)
