"""What workers write: whole, by rank, and no reason for training to stop."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.output.log_place import RunPlace
from launch.output.logs import Logs
from launch.output.output_lines import MOST_LINE_BYTES, LineCutter, prefixed
from launch.output.screen import Screen
from launch.output.worker_log import LAST_LINES, MOST_ASIDE_BYTES, WorkerLog
from tests.conftest import PROGRAMS, TIMEOUT_S, Completed, clean_environment
from tests.programs.writing import NO_TEXT
from tests.run_folders import status
from tests.started import JOB

Run = Callable[..., Completed]

WRITING = PROGRAMS / "writing.py"
LINES = 400


@given(st.lists(st.binary(max_size=40)))
def test_cut_lines_are_the_bytes_that_came_and_each_is_whole(chunks: list[bytes]) -> None:
    cutter = LineCutter()
    given_out = [cutter.add(chunk) for chunk in chunks]
    assert all(lines.endswith(b"\n") for lines in given_out if lines)
    assert len(b"".join(given_out)) == b"".join(chunks).rfind(b"\n") + 1
    whole = b"".join(chunks)
    missing = b"\n" if whole and not whole.endswith(b"\n") else b""
    assert b"".join(given_out) + cutter.end() == whole + missing


def test_what_has_no_line_ends_is_cut_and_does_not_pile_up() -> None:
    cutter = LineCutter()
    given_out = b"".join(cutter.add(b"x" * 50_000) for _ in range(100))
    lines = given_out.split(b"\n")
    assert b"".join(lines) + cutter.end().rstrip(b"\n") == b"x" * 5_000_000
    assert max(map(len, lines)) <= MOST_LINE_BYTES + 50_000


def test_a_line_that_was_written_over_is_shown_as_it_was_last() -> None:
    assert prefixed(b"a\r\n 1%\r 2%\rdone\n\n", b"> ") == b"> a\n> done\n> \n"
    cutter = LineCutter()
    cutter.add(b"whole\nunfinished")
    assert cutter.in_place is None
    cutter.add(b"\r 1%\r 2%")
    assert cutter.in_place == b" 2%"


def test_a_full_disk_is_told_once_and_the_last_lines_are_known(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log = WorkerLog()
    log.move_to(Path("/dev/full"))
    for number in range(1000):
        log.add(b"line %d\n" % number)
    log.close()
    assert list(log.last) == [b"line %d" % number for number in range(1000 - LAST_LINES, 1000)]
    said = "distrain: /dev/full cannot be written: No space left on device; training goes on\n"
    assert capfd.readouterr().err == said


def test_lines_wait_in_bounded_memory_for_a_place(tmp_path: Path) -> None:
    log = WorkerLog()
    log.add(b"x" * (MOST_ASIDE_BYTES - 1) + b"\n")
    log.add(b"too much\n")
    log.move_to(tmp_path / "logs" / "a.log")
    log.add(b"after\n")
    log.close()
    kept = (tmp_path / "logs" / "a.log").read_text().splitlines()
    assert kept[1:] == [
        "distrain: 9 bytes after this, before the run began, are lost",
        "after",
    ]


def test_a_run_has_files_of_starts_that_left_their_mark_and_of_later_ones_that_did_not(
    tmp_path: Path,
) -> None:
    def mark(number: int, launch: str) -> None:
        (tmp_path / "generation").write_text(f"{number} {uuid.uuid4().hex} {launch}\n")

    mark(3, "an earlier launch")
    place = RunPlace(tmp_path)
    place.begin("12.5 host")
    assert place.stem() is None
    assert place.stem(at_end=True) is None, "refused, for all that is known: nothing is left"
    mark(4, "another launch")
    assert place.stem(at_end=True) is None
    mark(5, "12.5 host")
    assert place.stem() == tmp_path / "logs" / "start-0005"
    place.begin("12.5 host")
    assert place.stem() is None
    assert place.stem(at_end=True) == tmp_path / "logs" / "start-0006"
    mark(6, "12.5 host")
    assert place.stem() == tmp_path / "logs" / "start-0006"


@pytest.fixture
def left_behind(tmp_path: Path) -> Iterator[Callable[[], psutil.Process]]:
    """The process that the program has left, killed in the end."""

    def found() -> psutil.Process:
        return psutil.Process(int((tmp_path / "left").read_text()))

    yield found
    found().kill()


def test_lines_of_all_workers_are_shown_whole_with_their_rank_and_kept_by_rank(
    tmp_path: Path, left_behind: Callable[[], psutil.Process]
) -> None:
    command = ["launch", "--workers", "3", "--log-dir", "logs", "--logs", "all"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.main", *command, WRITING, "pieces", str(LINES)],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        check=True,
        timeout=TIMEOUT_S,
    )
    assert left_behind().name() == "sleep", "who keeps the output open has not held the launcher"
    for stream, wanted in ((done.stdout, {1, 2}), (done.stderr, {0})):
        shown = stream.splitlines()
        for rank in range(3):
            ours = [line for line in shown if line.startswith(b"[rank %d] " % rank)]
            expected = [_line(rank, n) for n in range(LINES) if n % 3 in wanted]
            if 1 in wanted:
                expected += [NO_TEXT, b"unfinished"]
            assert [line.partition(b"] ")[2] for line in ours] == expected
        assert len(shown) == 3 * len(expected)
    names = {f"start-0001-rank-{rank}.log" for rank in range(3)}
    assert {path.name for path in (tmp_path / "logs").iterdir()} == names
    for rank in range(3):
        kept = (tmp_path / "logs" / f"start-0001-rank-{rank}.log").read_bytes().splitlines()
        all_lines = [*(_line(rank, n) for n in range(LINES)), NO_TEXT, b"unfinished"]
        assert sorted(kept) == sorted(all_lines)


def _line(rank: int, number: int) -> bytes:
    return f"line {number} of {rank} {'-' * (number % 50)} end".encode()


def test_who_stops_reading_stops_nobody_and_files_are_whole(
    tmp_path: Path, left_behind: Callable[[], psutil.Process]
) -> None:
    command = ["launch", "--workers", "2", "--log-dir", "logs"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "launch.main", *command, WRITING, "pieces", "20000"],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline().startswith(b"[rank ")
    launcher.stdout.close()
    assert launcher.wait(timeout=TIMEOUT_S) == 0
    assert left_behind().is_running()
    for rank in range(2):
        kept = (tmp_path / "logs" / f"start-0001-rank-{rank}.log").read_bytes().splitlines()
        assert len(kept) == 20_002


def test_of_quiet_workers_the_last_lines_of_the_one_that_failed_are_shown(
    distrain: Run, tmp_path: Path
) -> None:
    options = ("--logs", "failed", "--log-dir", tmp_path, "--max-restarts", 1)
    done = distrain("launch", "--workers", 2, *options, WRITING, "killed")
    assert (done.returncode, done.stdout) == (69, "")
    lines = done.stderr.splitlines()
    for start, said in ((1, lines[: LAST_LINES + 3]), (2, lines[LAST_LINES + 3 :])):
        path = tmp_path / f"start-000{start}-rank-1.log"
        assert said[0] == f"distrain: the last lines of rank 1 (all is in {path}):"
        assert said[1 : LAST_LINES + 1] == [
            *(f"[rank 1] line {number}" for number in range(40 - LAST_LINES, 39)),
            "[rank 1]  2%",
        ]
        assert said[LAST_LINES + 1] == "distrain (rank 1): worker 1 was killed by SIGKILL"
        assert len(path.read_bytes().split(b"\n")) == 41
    assert lines[LAST_LINES + 2] == "distrain: all workers start again (restart 1 of 1)"
    assert len(lines) == 2 * LAST_LINES + 5


def test_a_folder_for_logs_that_cannot_be_made_ends_it_with_74(
    distrain: Run, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "logs"
    done = distrain("launch", "--workers", 2, "--log-dir", place, WRITING, "pieces", 1)
    assert done.returncode == 74
    assert done.stderr == f"distrain: --log-dir {place}: Not a directory\n"


@pytest.mark.parametrize(
    ("environment", "prefix"),
    [
        ({"TERM": "xterm"}, "\r\x1b[2K\x1b[32m[rank 1]\x1b[0m "),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "\r\x1b[2K[rank 1] "),
        ({"TERM": "dumb"}, "[rank 1] "),
    ],
)
def test_ranks_are_coloured_where_the_terminal_can_and_nobody_forbids_it(
    environment: dict[str, str], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    near, far = os.openpty()
    with os.fdopen(far, "w") as terminal:
        Screen(terminal, with_ranks=True).show(1, b"a line\n", None)
        assert os.read(near, 1000).decode() == f"{prefix}a line\r\n"
    os.close(near)


def on_terminal(columns: int, command: list[str]) -> tuple[int, str]:
    """The exit code of a command, and what a terminal of that width has got from it."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        variables = {**clean_environment(), "TERM": "xterm"}
        del variables["COLUMNS"]
        os.execve(command[0], command, variables)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 1 << 16)
        except OSError:  # nobody has it open any more
            break
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


def test_on_a_terminal_rank_0_draws_its_bar_and_lines_stand_above_it(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    code, shown = on_terminal(
        60,
        [
            *(sys.executable, "-m", "launch.main", "train", str(JOB), "--workers", "2"),
            *("--data.path", str(digits), "--run.dir", str(folder), "--training.epochs", "1"),
            *("--logs", "all"),
        ],
    )
    assert (code, status(folder)["state"]) == (0, "done")
    assert "epoch 1/1" in shown
    assert re.search("\r\x1b\\[2K(\x1b\\[36m)?\\[rank 0](\x1b\\[0m)? finished after epoch 1", shown)
    kept = (folder / "logs" / "start-0001-rank-0.log").read_text()
    assert kept.startswith("finished after epoch 1, 6 steps")
    assert "\x1b" not in kept


def test_a_scripts_output_is_left_as_it_is_where_nobody_looks_on_or_asks() -> None:
    assert Logs.of_script(None, None, on_terminal=False) is None
    seen = Logs.of_script(None, None, on_terminal=True)
    assert seen is not None
    assert (seen.shown, seen.is_asked_for, seen.place()) == ("all", False, None)
    for shown, folder in (("failed", None), (None, Path("logs"))):
        asked = Logs.of_script(shown, folder, on_terminal=False)
        assert asked is not None
        assert (asked.shown, asked.is_asked_for) == (shown or "all", True)
