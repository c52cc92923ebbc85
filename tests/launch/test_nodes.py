"""Runs over several launchers, as on several machines: they come and die, the bits are the same."""

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import held_port
from tests.run_folders import last_step, named, status
from tests.started import (
    Started,
    is_training,
    rank_of,
    to_end_faulty,
    train_faulty,
    unbroken_faulty,
)

# Steps are slow, so that no run ends before its time, however long another machine's command takes
# to start; the rest is done at once in the end.
JOB = ("--training.epochs", 60)
STEP_S = "0.3"
BOUNDED_S = 30.0


@pytest.fixture
def place() -> Iterator[str]:
    """A port of loopback that nobody listens on."""
    with held_port() as port:
        yield f"127.0.0.1:{port}"


def node(digits: Path, folder: Path, place: str, nodes: str) -> Started:
    more = ("--nodes", nodes, "--rendezvous", place)
    return train_faulty(digits, folder, 1, *JOB, *more, STEP_S=STEP_S)


def expect_the_same_in_the_end(digits: Path, folder: Path) -> None:
    assert to_end_faulty(digits, folder, *JOB) == unbroken_faulty(digits, *JOB)


def until_keeps(first: Started, place: str) -> None:
    """Waits until the first launcher keeps the rendezvous: it listens."""
    host, _, port = place.partition(":")

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    first.until(answers)


def workers_now(folder: Path) -> int:
    return int(status(folder)["workers"]) if (folder / "status.json").exists() else 0


def test_machines_come_and_die_in_mid_epoch_and_the_weights_are_the_same(
    digits: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "run"
    with node(digits, folder, place, "1:2") as first:
        first.until(lambda: last_step(folder) > 2)
        with node(digits, folder, place, "1:2") as second:
            first.until(lambda: is_training(folder, 2) and workers_now(folder) == 2)
            came_at = last_step(folder)
            second.process.kill()
            killed = time.monotonic()
            first.until(lambda: is_training(folder, 3))
            print(f"went on {time.monotonic() - killed:.2f} s after a machine was lost")
            assert workers_now(folder) == 1
        first.process.terminate()
        assert first.ends() == 75, first.said
    # For one that came all was saved; after one that died the newest state was taken.
    came, died = (event["step"] for event in named(folder, "resume"))
    assert came <= came_at
    assert came <= died
    expect_the_same_in_the_end(digits, folder)
    assert "(restart 1 of 10)" in first.said
    assert "(restart 2 of 10)" not in first.said


def test_a_hang_on_one_machine_is_named_there_and_all_machines_keep_their_stacks(
    digits: Path, tmp_path: Path, place: str
) -> None:
    folder, more = tmp_path / "run", ("--nodes", 2, "--rendezvous", place)
    job = (*JOB, "--run.hang-timeout-s", 3)
    with train_faulty(digits, folder, 1, *job, *more, STEP_S=STEP_S) as first:
        until_keeps(first, place)
        with train_faulty(digits, folder, 1, *job, *more, STEP_S=STEP_S) as second:
            first.until(lambda: is_training(folder, 1))
            own = second.worker(0) if 0 in second.workers() else second.worker(1)
            own.send_signal(signal.SIGSTOP)
            first.until(lambda: bool(named(folder, "resume")))
            second.process.terminate()
            assert (first.ends(), second.ends()) == (75, 75), first.said + second.said
    kept = {path.name.partition("-rank-")[2] for path in (folder / "stacks").iterdir()}
    assert kept == {"0.txt", "1.txt"}
    assert "(a signal has stopped its process)" in second.said
    assert "hangs" not in first.said
    expect_the_same_in_the_end(digits, folder)


def test_a_fault_on_one_machine_ends_all_with_its_code_and_its_words(
    digits: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "run"
    more = ("--nodes", 2, "--rendezvous", place)
    with train_faulty(digits, folder, 1, *more, FAULT="1:raise:7") as first:
        until_keeps(first, place)
        with train_faulty(digits, folder, 1, *more, FAULT="1:raise:7") as second:
            assert (first.ends(), second.ends()) == (70, 70), first.said + second.said
        assert "ValueError: planted in the model" in first.said
        assert first.said.splitlines()[-1] == second.said.splitlines()[-1]


def test_the_machine_that_keeps_the_rendezvous_is_lost_and_replaced_and_the_bits_are_the_same(
    digits: Path, tmp_path: Path, place: str
) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def ranked(run: Path, node_rank: int, *more: object) -> Started:
        ranks = ("--nodes", 2, "--node-rank", node_rank, "--rendezvous", place)
        return train_faulty(digits, run, 1, *JOB, *ranks, *more, STEP_S=STEP_S)

    with ranked(folder, 1) as second:
        with ranked(folder, 0) as first:
            second.until(lambda: last_step(folder) > 10)
            keeper = first.worker(0)
            first.process.kill()
            first.ends()
            second.until(lambda: rank_of(keeper) is None)  # till then it may do a step more
            died_at = last_step(folder)
        with ranked(folder, 0, "--fresh") as first:  # which is for a run that begins
            second.until(lambda: is_training(folder, 2))
            assert 0 in first.workers(), "rank 0 is where the least node rank is"
            assert named(folder, "resume")[0]["step"] in range(died_at - 10, died_at + 1)
            first.process.kill()
        # Of a new store nobody but the second can know that the run has begun.
        with ranked(elsewhere, 0) as first:
            assert (first.ends(), second.ends()) == (78, 78), first.said + second.said
    assert "put run.dir on a disk that all machines share" in second.said
    assert not elsewhere.exists()
    assert not folder.with_name("run.old-1").exists()
    assert f"the machine that keeps the rendezvous at {place} is lost" in second.said
    assert "(restart 2 of 10)" in second.said
    expect_the_same_in_the_end(digits, folder)


def test_without_restarts_the_loss_of_who_keeps_the_rendezvous_is_the_end(
    digits: Path, tmp_path: Path, place: str
) -> None:
    folder, more = tmp_path / "run", ("--max-restarts", 0)
    nodes = ("--nodes", "1:2", "--rendezvous", place, *more)
    with train_faulty(digits, folder, 1, *JOB, *nodes, STEP_S=STEP_S) as first:
        until_keeps(first, place)
        with train_faulty(digits, folder, 1, *JOB, *nodes, STEP_S=STEP_S) as second:
            second.until(lambda: workers_now(folder) == 2 and last_step(folder) > 3)
            first.process.kill()
            killed = time.monotonic()
            assert second.ends() == 69
            assert time.monotonic() - killed < BOUNDED_S


def test_a_machine_too_many_takes_the_place_of_one_that_is_lost_and_a_stop_is_for_all(
    digits: Path, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / "run"
    with node(digits, folder, place, "2:2") as first:
        until_keeps(first, place)
        with (
            node(digits, folder, place, "2:2") as second,
            node(digits, folder, place, "2:2") as third,
        ):
            first.until(lambda: last_step(folder) > 10)  # there is a checkpoint
            lost, spare = (second, third) if second.workers() else (third, second)
            assert not spare.workers()
            lost.process.kill()
            first.until(lambda: is_training(folder, 2))
            assert len(spare.workers()) == 1
            spare.process.terminate()  # a stop of any machine is one of all
            assert (first.ends(), spare.ends()) == (75, 75), first.said + spare.said
    assert "stopped by SIGTERM, with everything saved" in first.said
    assert status(folder)["step"] == last_step(folder)


def test_a_machine_without_the_runs_folder_does_not_begin_the_run_anew(
    digits: Path, tmp_path: Path, place: str
) -> None:
    shared, elsewhere = tmp_path / "shared", tmp_path / "elsewhere"
    # Which is rank 0 follows from addresses and process numbers: here the first.
    with node(digits, shared, place, "1:2") as first:
        first.until(lambda: is_training(shared, 1))
        with node(digits, elsewhere, place, "1:2") as second:
            # On a busy host it may take more than one start until the second is in.
            first.until(
                lambda: (
                    workers_now(shared) == 2
                    and is_training(shared, 1 + len(named(shared, "resume")))
                )
            )
            # The run's folder is gone as for a machine that does not have it, and for nobody who
            # would still write there.
            first.worker(0).kill()
            second.worker(1).kill()
            shared.rename(tmp_path / "moved")
            assert (first.ends(), second.ends()) == (78, 78), first.said + second.said
    assert "put run.dir on a disk that all machines share" in second.said
    assert not elsewhere.exists()


SCRIPT = """
import os, pathlib, signal, sys, time
rank, start = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
done = pathlib.Path(sys.argv[1])
if (rank, start) == ("0", "0"):
    while not (done / "1-0").exists():
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
while rank == "0" and not (done / "go").exists():
    time.sleep(0.01)
(done / f"{rank}-{start}").touch()
"""


def test_a_script_runs_on_several_machines_and_who_is_done_goes_again_where_another_is_lost(
    tmp_path: Path, place: str
) -> None:
    script, done = tmp_path / "script.py", tmp_path / "done"
    script.write_text(SCRIPT)
    done.mkdir()

    def launch(node_rank: int) -> Started:
        nodes = ("--nodes", 2, "--node-rank", node_rank, "--rendezvous", place)
        return Started("launch", "--workers", 1, "--max-restarts", 2, *nodes, script, done)

    with launch(1) as second, launch(0) as first:
        first.until(lambda: (done / "1-1").exists() and not second.workers())
        second.process.terminate()  # it has nothing left to do
        assert second.ends() == 0, second.said
        (done / "go").touch()
        assert first.ends() == 0, first.said
    assert sorted(path.name for path in done.iterdir()) == ["0-1", "1-0", "1-1", "go"]


def test_a_rendezvous_that_nobody_joins_is_given_up_in_time(tmp_path: Path, place: str) -> None:
    script = tmp_path / "script.py"
    script.touch()
    nodes = ("--nodes", 2, "--node-rank", 0, "--rendezvous", place, "--join-timeout", 2)
    with Started("launch", "--workers", 1, *nodes, script) as alone:
        assert alone.ends() == 69  # within LIMIT_S, in which its start is: torch waits for longer
    assert alone.said == (
        f"distrain: fewer than 2 machines came to {place} within 2 s: start the others, or give "
        "--nodes a smaller MIN"
    )
