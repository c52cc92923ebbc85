"""Workers and launchers that are killed: runs start again by themselves, and nothing is left."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import psutil

from distrain.coordinator.run_status import read_status
from tests.conftest import PROGRAMS
from tests.run_folders import events, last_step, named, outcome, status
from tests.started import (
    Started,
    is_training,
    loaded,
    random_moments,
    to_end_faulty,
    train,
    train_faulty,
    unbroken,
)

KILLS, MOST_STEPS_BETWEEN, CHECKPOINT_EVERY = 10, 20, 5
# Enough steps that no run ends before its last kill; how the weights go depends on none of this.
LONG = (
    *("--training.epochs", 70, "--early-stopping.patience", 70),
    *("--checkpoint.every-steps", CHECKPOINT_EVERY),
)
NOTICED_S, GONE_S = 1.0, 2.0
"""Where the cores are free; see `loaded`."""

SLOWNESS = ("slow_rank", "slow_rank_over")


def test_ten_killed_workers_cost_ten_restarts_and_no_bit(digits: Path, tmp_path: Path) -> None:
    expected, moments, folder = unbroken(digits, *LONG), random_moments(), tmp_path / "run"
    delays_s: list[float] = []
    stood, killed_ranks = list[int](), list[int]()
    with train(digits, folder, 3, *LONG, "--checkpoint.snapshot-every", 1) as run:
        for number in range(1, KILLS + 1):
            run.until(lambda: is_training(folder, number))  # noqa: B023 - it is called here
            # Not before the first checkpoint, so that each restart tells that it goes on.
            goal = max(6, last_step(folder) + moments.randint(1, MOST_STEPS_BETWEEN))
            run.until(lambda: last_step(folder) >= goal)  # noqa: B023
            time.sleep(moments.uniform(0.0, 0.1))
            rank = moments.randrange(3)
            killed_ranks.append(rank)
            victim, said_before = run.worker(rank), len(run.lines)
            killed = time.monotonic()
            stood.append(last_step(folder))
            victim.kill()
            run.until(lambda: len(run.lines) >= said_before + 2)  # noqa: B023
            delays_s.append(run.lines[said_before][0] - killed)
            assert run.lines[said_before][1].endswith(f"worker {rank} was killed by SIGKILL")
            assert run.lines[said_before + 1][1].endswith(f"(restart {number} of {KILLS})")
        assert run.ends() == 0, run.said
    print("noticed after", [f"{delay:.2f} s" for delay in delays_s])
    # The median: on a busy machine a single one says little.
    assert median(delays_s) < loaded(NOTICED_S)
    assert outcome(folder) == expected
    resumed = [event["step"] for event in named(folder, "resume")]
    assert len(resumed) == KILLS
    # What the log tells of last may not be in memory yet.
    assert all(step >= before - 1 for step, before in zip(resumed, stood, strict=True))
    assert status(folder)["starts"] == KILLS + 1
    causes = [
        (event["restart"], event["text"], event["rank"]) for event in named(folder, "restart")
    ]
    assert causes == [
        (number, f"worker {rank} was killed by SIGKILL", rank)
        for number, rank in enumerate(killed_ranks, 1)
    ]
    again = [event["steps_again"] for event in named(folder, "resume")]
    assert all(steps >= 0 for steps in again)
    # Of a checkpoint and a snapshot of the same step, the checkpoint is taken.
    sources = [event["source"] for event in named(folder, "resume")]
    assert all(
        source == "memory" or step % CHECKPOINT_EVERY == 0
        for source, step in zip(sources, resumed, strict=True)
    )
    # On a busy machine a worker may be slow at any time, which is told of as well.
    names = ("restart", "resume", "end", *SLOWNESS)
    told = [event for event in events(folder) if event["event"] in names]
    texts = [event.get("text") or event["reason"] for event in told]
    life = [text for _, text in read_status(folder).life]
    assert life == texts[-len(life) :]
    *_, lost, going_on, end = [event for event in told if event["event"] not in SLOWNESS]
    assert lost["text"].endswith("was killed by SIGKILL")
    whence = ", from memory" if sources[-1] == "memory" else ""
    assert going_on["text"].startswith(f"going on after step {resumed[-1]}{whence}")
    assert (end["event"], end["reason"]) == ("end", "finished")


def test_fresh_moves_the_old_run_aside_once_whenever_a_worker_dies(
    digits: Path, tmp_path: Path
) -> None:
    folder, aside = tmp_path / "run", tmp_path / "run.old-1"
    expected, ended = to_end_faulty(digits, folder), status(folder)["time"]
    # Once before the folder was opened, with the old run in its place, and once in training.
    fault = {"FAULT": "0:lose:0", "STEP_S": "0.05"}
    with train_faulty(digits, folder, 2, "--fresh", **fault) as run:
        run.until(lambda: "restart 1 of 10" in run.said)
        run.until(lambda: aside.exists() and last_step(folder) > 12)
        run.worker(1).kill()
        assert run.ends() == 0, run.said
        assert "restart 2 of 10" in run.said
    assert sorted(path.name for path in tmp_path.glob("run*")) == ["run", "run.old-1"]
    assert status(aside)["time"] == ended
    assert outcome(folder) == outcome(aside) == expected
    (resumed,) = named(folder, "resume")
    assert resumed["step"] >= 10


def test_a_killed_launcher_leaves_no_process_whenever_it_is_killed_of_twenty_times(
    digits: Path, tmp_path: Path
) -> None:
    """Workers, the process that they are forked from, Python's tracker: of scripts and of jobs."""
    moments = random_moments()
    # As soon as there is another process, while the workers start, and after.
    delays_s = [0.0, *(moments.uniform(0.0, 0.1 * 1.26**number) for number in range(19))]
    with ThreadPoolExecutor(2) as pool:
        tries = [
            pool.submit(left_alive, tmp_path / f"{delay_s}", delay_s, digits if at % 2 else None)
            for at, delay_s in enumerate(delays_s)
        ]
    left = {delay_s: done.result() for delay_s, done in zip(delays_s, tries, strict=True)}
    assert not any(left.values()), f"processes left, by seconds from the first's start: {left}"


def left_alive(up: Path, delay_s: float, digits: Path | None) -> int:
    """How many processes outlive a launcher that is killed so long after it has begun others.

    It trains on the digits, or its workers wait for each other.
    """
    mark = {"DISTRAIN_TEST_MARK": str(up)}
    if digits is None:
        program = (PROGRAMS / "failing.py", "wait", up)
        started = Started("launch", "--workers", 2, *program, environment=mark)
    else:
        up.mkdir()
        started = train_faulty(digits, up / "run", 2, "--training.epochs", 500, **mark)
    with started as launcher:
        launcher.until(lambda: len(marked(str(up))) >= 2)
        time.sleep(delay_s)
        launcher.process.kill()
        launcher.process.wait()
        end = time.monotonic() + loaded(GONE_S)
        while (alive := marked(str(up))) and time.monotonic() < end:
            time.sleep(0.02)
        for process in alive:
            process.kill()
        return len(alive)


def marked(mark: str) -> list[psutil.Process]:
    """All live processes that descend from the command that was started with the mark."""
    return [process for process in psutil.process_iter() if has_mark(process, mark)]


def has_mark(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("DISTRAIN_TEST_MARK") == mark
    except psutil.Error:
        return False


def fork_server(run: Started) -> psutil.Process:
    """The process that the workers are forked from."""
    (found,) = {worker.ppid() for worker in run.workers().values()}
    return psutil.Process(found)


def test_a_lost_fork_server_costs_a_restart_and_its_successor_dies_with_the_launcher(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with train(digits, folder, 2, *LONG, "--training.epochs", 5000) as run:
        run.until(lambda: is_training(folder, 1) and last_step(folder) > 6)
        fork_server(run).kill()
        run.until(lambda: is_training(folder, 2))
        assert "was lost with the process that it was forked from" in run.said
        assert "(restart 1 of 10)" in run.said
        left = [fork_server(run), *run.workers().values()]
        assert len(left) == 3
        run.process.kill()
        run.process.wait()
        _, alive = psutil.wait_procs(left, timeout=loaded(GONE_S))
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_restart_that_nobody_reads_of_is_a_restart_all_the_same(
    digits: Path, tmp_path: Path
) -> None:
    expected, folder = unbroken(digits, *LONG), tmp_path / "run"
    with Path("/dev/full").open("w") as full, train(digits, folder, 2, *LONG, stderr=full) as run:
        run.until(lambda: is_training(folder, 1) and last_step(folder) > 6)
        run.worker(1).kill()
        assert run.ends() == 0
    assert outcome(folder) == expected
    assert status(folder)["starts"] == 2
