"""Groups of real processes: how they end, together, and what the user is told."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROGRAMS, ROOT, TIMEOUT_S, Completed, clean_environment
from tests.started import LIMIT_S, loaded

Run = Callable[..., Completed]


def test_a_failing_workers_traceback_is_shown_once_with_its_rank(distrain: Run) -> None:
    done = distrain("launch", "--workers", 3, PROGRAMS / "failing.py", "raise", 1)
    assert done.returncode == 70
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.count("planted in rank 1") == 1
    assert done.stderr.startswith("distrain (rank 1): Traceback")
    assert "in fail_here" in done.stderr
    assert "elastic" not in done.stderr


def test_a_killed_worker_ends_all_and_is_named(distrain: Run) -> None:
    done = distrain("launch", "--workers", 3, PROGRAMS / "failing.py", "kill", 2)
    assert done.returncode == 69
    assert done.stderr.strip() == "distrain (rank 2): worker 2 was killed by SIGKILL"


def test_a_scripts_own_exit_code_is_passed_on(distrain: Run) -> None:
    for workers in (1, 2):
        done = distrain("launch", "--workers", workers, PROGRAMS / "failing.py", "exit", 0)
        assert done.returncode == 7
        assert "the program ended with exit code 7" in done.stderr


def test_a_worker_that_leaves_without_a_word_is_named_with_its_exit_code(distrain: Run) -> None:
    done = distrain("launch", "--workers", 2, PROGRAMS / "failing.py", "leave", 1)
    assert done.returncode == 3
    assert "(rank 1): worker 1 ended with exit code 3 and said nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_ends_just_after_a_look_is_the_cause_and_not_who_waits(
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '1':\n    os._exit(3)\ntime.sleep(600)\n"
    )
    program = (
        "import sys\n"
        "from multiprocessing.connection import wait\n"
        "from launch.main import command\n"
        "from launch.supervision import Supervision\n"
        "look = Supervision.have_failed\n"
        "def look_before_it_ends(watch):\n"
        "    failed = look(watch)\n"
        "    wait([each.sentinel for each in watch._processes().values()])\n"
        "    return failed\n"
        "Supervision.have_failed = look_before_it_ends\n"
        "Supervision.wait = lambda *_: None\n"
        f"sys.argv[1:] = ['launch', '--workers', '2', {str(script)!r}]\n"
        "command()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 3
    assert done.stderr == "distrain (rank 1): worker 1 ended with exit code 3 and said nothing\n"


def test_a_worker_that_ends_early_is_no_success(distrain: Run) -> None:
    done = distrain("launch", "--workers", 2, PROGRAMS / "failing.py", "end", 1)
    assert done.returncode == 69
    assert "the connection to another worker was lost; did it end early?" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_for_the_user_is_told_without_a_traceback(distrain: Run) -> None:
    done = distrain("launch", "--workers", 2, PROGRAMS / "failing.py", "config", 0)
    assert done.returncode == 78
    assert done.stderr.strip() == "distrain: epochs is 0: give 1 or more"


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_ends_every_process(workers: int, tmp_path: Path) -> None:
    started = tmp_path / "started"
    command = [sys.executable, "-m", "launch.main", "launch", "--workers", str(workers)]
    launcher = subprocess.Popen(
        [*command, str(PROGRAMS / "failing.py"), "wait", str(started)],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("started-*"))) == workers)
    children = psutil.Process(launcher.pid).children(recursive=True)
    assert len(children) >= (workers if workers > 1 else 0)
    os.killpg(launcher.pid, signal.SIGINT)
    _, said = launcher.communicate(timeout=TIMEOUT_S)
    assert launcher.returncode == 130
    assert said.strip() == "distrain: interrupted"
    assert not left_alive(children)


def test_sigterm_ends_a_worker_that_works_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.main", "launch", "--workers", "1"]
    launcher = subprocess.Popen(
        [*command, str(PROGRAMS / "failing.py"), "wait", str(tmp_path / "started")],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((tmp_path / "started-0").exists)
    launcher.terminate()
    _, said = launcher.communicate(timeout=TIMEOUT_S)
    assert (launcher.returncode, said.strip()) == (143, "distrain: stopped by SIGTERM")


def test_killing_the_launcher_leaves_no_worker(tmp_path: Path) -> None:
    started = tmp_path / "started"
    command = [sys.executable, "-m", "launch.main", "launch", "--workers", "2"]
    launcher = subprocess.Popen(
        [*command, str(PROGRAMS / "failing.py"), "wait", str(started)], env=clean_environment()
    )
    wait_for(lambda: len(list(tmp_path.glob("started-*"))) == 2)
    children = psutil.Process(launcher.pid).children(recursive=True)
    assert len(children) >= 2
    launcher.kill()
    launcher.wait()
    assert not left_alive(children)


def left_alive(processes: list[psutil.Process], limit_s: float = 2.0) -> list[psutil.Process]:
    """Those that still run after the time; what only waits for init to take its code has ended."""
    end = time.monotonic() + loaded(limit_s)
    while True:
        alive = [each for each in processes if is_alive(each)]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.02)


def is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_local_run_listens_on_loopback_alone(tmp_path: Path) -> None:
    started = tmp_path / "started"
    command = [sys.executable, "-m", "launch.main", "launch", "--workers", "2"]
    launcher = subprocess.Popen(
        [*command, str(PROGRAMS / "failing.py"), "wait", str(started)], env=clean_environment()
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("started-*"))) == 2)
        group = psutil.Process(launcher.pid)
        listening = [
            connection.laddr.ip
            for process in (group, *group.children(recursive=True))
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 3, "the store, and a listener of gloo's in each worker"
        assert set(listening) == {"127.0.0.1"}
    finally:
        launcher.kill()
        launcher.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end, "the workers did not start"
        time.sleep(0.05)


def test_world_size_without_a_group_is_an_error_and_no_training(tmp_path: Path) -> None:
    environment = clean_environment() | {"WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "digits.py"), str(tmp_path / "run")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "WORLD_SIZE is 2, but RANK" in done.stderr


def test_the_same_script_leaves_the_same_bits_under_python_torchrun_and_distrain(
    distrain: Run, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "digits").symlink_to(digits)
    script = str(ROOT / "examples" / "digits.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    for name, command in (
        ("python", [sys.executable]),
        ("torchrun", [*torchrun, "--nproc-per-node", "2"]),
    ):
        subprocess.run(
            [*command, script, name],
            env=clean_environment(),
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
    done = distrain("launch", "--workers", 4, script, "launch", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {
        (tmp_path / name / "model.safetensors").read_bytes()
        for name in ("python", "torchrun", "launch")
    }
    assert len(written) == 1


def test_a_worker_that_leaves_with_0_has_done_its_work(distrain: Run, tmp_path: Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(
        "import os, sys\n"
        "os.environ['RANK'] == '0' or os._exit(0)\n"
        "sys.stdout.close()\n"  # as a daemon does: it has no more to say
    )
    done = distrain("launch", "--workers", 2, script)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_script_that_saves_nothing_ends_by_the_signal(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "launch.main", "launch", "--workers", "2"]
    launcher = subprocess.Popen(
        [*command, str(PROGRAMS / "failing.py"), "wait", str(tmp_path / "started")],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(list(tmp_path.glob("started-*"))) == 2)
    launcher.send_signal(number)
    _, said = launcher.communicate(timeout=TIMEOUT_S)
    assert (launcher.returncode, said.strip()) == (code, f"distrain: stopped by {number.name}")
