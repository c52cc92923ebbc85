"""`distrain data convert` as a user runs it: killed, stopped, on a full disk, with bad input."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch.main import main
from tests.conftest import ROOT, TIMEOUT_S, Completed, clean_environment
from tests.distrain.test_full_disk import fill, make_room, small_disk
from tests.folders import hashes

Run = Callable[..., Completed]
OPTIONS = ("--split", "test=0.2", "--rows-per-shard", "40", "--stack", "f=*")
FILES, ROWS = 40, 50


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of many small CSV files, each a piece of its own."""
    folder = tmp_path_factory.mktemp("source") / "many files"
    folder.mkdir()
    generator = random.Random(0)
    for number in range(FILES):
        rows = (
            f"{generator.random()},{generator.randrange(99)},text {generator.random()},"
            f"{generator.choice('abc')}\n"
            for _ in range(ROWS)
        )
        (folder / f"{number:03d}.csv").write_text("x,y,text,label\n" + "".join(rows))
    return folder


@pytest.fixture(scope="module")
def expected(
    table: Path, tmp_path_factory: pytest.TempPathFactory, distrain: Run
) -> dict[str, str]:
    """The bytes of a conversion that nothing happened to."""
    folder = tmp_path_factory.mktemp("expected") / "d"
    done = distrain("data", "convert", table, folder, *OPTIONS, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return hashes(folder)


Here = Callable[..., tuple[object, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs `distrain data` in this process, on one worker: exit code, stdout, stderr."""

    def run(action: str, *arguments: object) -> tuple[object, str, str]:
        more = [] if action != "convert" or "--workers" in arguments else ["--workers", "1"]
        with pytest.raises(SystemExit) as caught:
            main(["data", action, *map(str, arguments), *more])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


def start(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "launch.main", "data", "convert", *map(str, arguments)],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_killed_at_random_moments_and_run_again_it_leaves_the_same_bytes(
    tmp_path: Path, table: Path, expected: dict[str, str], workers: int
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    generator = random.Random(seed)
    folder, partial = tmp_path / "d", tmp_path / ".d.partial"
    kills = 0
    for number in range(3):
        with start(table, folder, *OPTIONS, "--workers", workers) as process:
            # From the first piece on, and later from the first shard on.
            wait_for(partial / ("staged" if number < 2 else "result/train"), process)
            time.sleep(generator.uniform(0.0, 0.25))
            kills += process.poll() is None
            process.kill()
        assert not folder.exists() or hashes(folder) == expected
    with start(table, folder, *OPTIONS, "--workers", workers) as process:
        _, stderr = process.communicate(timeout=120)
    # Where the last one had finished all, there is nothing left to do.
    assert process.returncode == 0 or f"{folder} exists already" in stderr, stderr
    assert hashes(folder) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    assert kills >= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_the_work_and_says_so(
    tmp_path: Path, table: Path, expected: dict[str, str], workers: int
) -> None:
    folder, partial = tmp_path / "d", tmp_path / ".d.partial"
    with start(table, folder, *OPTIONS, "--workers", workers) as process:
        wait_for(partial / "staged" / "00000003.json", process)
        process.send_signal(signal.SIGSTOP)  # it must not be done before it is asked to stop
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 75, stderr
    assert stderr == (
        f"distrain: stopped; what is finished is kept in {partial}: run the same command again to "
        "go on, or remove that folder\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == [".d.partial"]
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)
    with start(table, folder, *OPTIONS, "--workers", workers) as process:
        assert process.wait(timeout=120) == 0
    assert hashes(folder) == expected


def test_a_killed_worker_is_69_and_the_work_is_kept(
    tmp_path: Path, table: Path, expected: dict[str, str]
) -> None:
    folder = tmp_path / "d"
    with start(table, folder, *OPTIONS, "--workers", 2) as process:
        wait_for(tmp_path / ".d.partial" / "staged" / "00000000.json", process)
        workers = [
            child
            for server in psutil.Process(process.pid).children()
            for child in server.children()
        ]
        assert workers
        workers[0].kill()
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 69, stderr
    assert "a worker process was lost" in stderr
    with start(table, folder, *OPTIONS, "--workers", 2) as process:
        assert process.wait(timeout=120) == 0
    assert hashes(folder) == expected


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk") as found:
        yield found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_74_leaves_nothing_under_the_name_and_can_go_on(
    disk: Path, table: Path, expected: dict[str, str], distrain: Run, workers: int
) -> None:
    folder, command = disk / "d", ("data", "convert", table, disk / "d", *OPTIONS)
    fill(disk)
    with (disk / "ballast").open("r+b") as ballast:
        ballast.truncate(os.fstat(ballast.fileno()).st_size - 200_000)
    full = distrain(*command, "--workers", workers)
    assert full.returncode == 74, full.stderr
    assert "No space left on device" in full.stderr
    assert f"what is finished is kept in {disk}/.d.partial" in full.stderr
    assert not folder.exists()
    make_room(disk)
    again = distrain(*command, "--workers", workers)
    assert again.returncode == 0, again.stderr
    assert hashes(folder) == expected


def test_what_was_written_is_summed_up_shown_and_verified(
    tmp_path: Path, table: Path, distrain: Run
) -> None:
    done = distrain("data", "convert", table, "a set", *OPTIONS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith(f"wrote {table} to a set in ")
    assert first.endswith(" rows for test")
    assert second == "label: 3 classes: a, b, c"
    checked = distrain("data", "verify", "a set", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert f"({FILES * ROWS:,} rows)" in checked.stdout
    shard = tmp_path / "a set" / "train" / "00001.arrow"
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    checked = distrain("data", "verify", "a set", cwd=tmp_path)
    assert checked.returncode == 65
    assert "train/00001.arrow is damaged" in checked.stderr


def test_duplicates_and_rows_left_out_are_named(tmp_path: Path, command: Here) -> None:
    rows = [f"{n % 8},{'train' if n < 9 else 'test'}" for n in range(12)]
    (tmp_path / "a.csv").write_text("\n".join(["x,fold", *rows, "1,2,3"]) + "\n")
    code, stdout, stderr = command(
        *("convert", tmp_path / "a.csv", tmp_path / "d", "--split-by", "fold", "--skip-bad", 1)
    )
    assert code == 0, stderr
    assert stdout.splitlines()[1:] == [
        "1 rows repeat the inputs of an earlier row of their part",
        "3 rows repeat the inputs of a row of another part:",
        "  a.csv line 11 (test) = a.csv line 3 (train)",
        "  a.csv line 12 (test) = a.csv line 4 (train)",
        "  a.csv line 13 (test) = a.csv line 5 (train)",
        "1 rows were left out:",
        f"  {tmp_path}/a.csv line 14 has 3 values where there are 2 columns",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_all_kinds_are_shown_in_narrow_terminals(
    tmp_path: Path, command: Here, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    content = pa.table(
        {
            "walk": pa.array([[1.0, 2.0], [], [3.0]], pa.list_(pa.float32())),
            "name": ["a", "bc", ""],
            "n": pa.array([1, None, 3]),
            "label": ["x", "y", "x"],
        }
    )
    pq.write_table(content, tmp_path / "a.parquet")
    code, _, stderr = command(
        "convert", tmp_path / "a.parquet", tmp_path / "d", "--missing", "keep"
    )
    assert code == 0, stderr
    monkeypatch.setenv("COLUMNS", str(width))
    _, shown, _ = command("inspect", tmp_path / "d")
    assert all(len(line) <= width for line in shown.splitlines()[1:])
    for text in ("sequence", "text", "number", "3 texts", "1 missing", "x: 2", "up to"):
        assert text in shown, shown


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "x,z\n1,2\n3\n", (), "a.csv line 3 has 1 values where there are 2 columns"),
        ("a.csv", "x\n1\nNaN\n", (), "column 'x' has no value in a.csv line 3: fill it"),
        ("a.csv", "x\n1\n", ("--type", "x=uint7"), "column 'x' cannot be read as 'uint7'"),
        ("a.csv", "x\n1\n", ("--split", "test=0.999"), "part 'train' would be empty"),
        ("a.xyz", "x\n", (), "is of no kind that is known: name one with --kind; there are"),
        ("a.parquet", "PAR1 no parquet PAR1", (), "a.parquet cannot be read as Parquet"),
        ("a.jsonl", '{"x": 1}\n{"x"\n', (), "a.jsonl line 2 is no JSON object"),
        ("a.arrow", "ARROW1 no arrow", (), "a.arrow cannot be read as Arrow IPC"),
        ("a.csv", "x\n1\n", ("--kind", "excel"), "there is no kind of source 'excel'"),
    ],
)
def test_bad_input_is_65_with_a_message_of_its_own(
    tmp_path: Path, command: Here, name: str, content: str, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / name).write_text(content)
    code, _, stderr = command("convert", tmp_path / name, tmp_path / "d", *options)
    assert code == 65, stderr
    assert message in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", "0"), "--size is '0'; give pixels, such as 64, or height x width: 48x64"),
        (("--type", "x"), "--type is 'x'; give NAME=VALUE"),
        (("--type", "x=text", "--type", "x=label"), "--type names 'x' twice"),
        (("--split", "test=2"), "--split gives 'test' a share of '2'; give one between 0 and 1"),
        (("--split", "test=a"), "--split gives 'test' a share of 'a'; give one between 0 and 1"),
        (("--workers", "0"), "--workers is 0; give 1 or more"),
        (("--rows-per-shard", "0"), "--rows-per-shard is 0; give 1 or more"),
        (("--skip-bad", "-1"), "--skip-bad is -1; give 0 or more"),
    ],
)
def test_wrong_usage_is_64(command: Here, options: tuple[str, ...], message: str) -> None:
    code, _, stderr = command("convert", "a", "b", *options)
    assert code == 64
    assert message in stderr
