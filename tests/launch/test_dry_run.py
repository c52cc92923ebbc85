"""A dry run tells what a start does, and does none of it."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from distrain.job_file import override, read_job
from tests.conftest import PROGRAMS, Completed, clean_environment
from tests.started import JOB

Run = Callable[..., Completed]

SET_BY_LIBRARIES = {"KMP_DUPLICATE_LIB_OK", "TORCHINDUCTOR_CACHE_DIR"}
"""What torch sets for itself as it is imported."""


HOSTS = ("--hosts", "127.0.0.1:1,localhost:1", "--network-interfaces", "lo")


def told_variables(text: str) -> dict[str, dict[str, str]]:
    """By whom they are for, the variables that a dry run tells of."""
    found: dict[str, dict[str, str]] = {}
    lines = text.partition("environment:\n")[2].partition("\n\n")[0].splitlines()
    for line in lines:
        if line.startswith("  for "):
            who, _, assigned = line.removeprefix("  for ").partition(":")
        else:
            assigned = line
        pairs = shlex.split(assigned)
        found.setdefault(who, {}).update(pair.split("=", 1) for pair in pairs)  # type: ignore[misc]
    return found


@pytest.mark.parametrize(
    "where",
    [
        ("--workers", 2),
        pytest.param(("--workers", 2, "--backend", "horovod"), marks=pytest.mark.horovod),
        pytest.param((*HOSTS, "--backend", "horovod"), marks=pytest.mark.horovod),
    ],
    ids=["torch", "horovod", "hosts"],
)
def test_workers_find_the_very_environment_that_a_dry_run_has_told_of(
    distrain: Run, tmp_path: Path, where: Sequence[object]
) -> None:
    options = (*where, "--logs", "failed", "--log-dir", tmp_path)
    program = PROGRAMS / "environment.py"
    told = told_variables(distrain("launch", *options, "--dry-run", program).stdout)
    assert list(tmp_path.iterdir()) == []
    assert distrain("launch", *options, program).returncode == 0
    for rank in range(2):
        log = tmp_path / f"start-0001-rank-{rank}.log"
        found: dict[str, str] = json.loads(log.read_text())
        beside = found.items() - clean_environment().items()
        real = {name: value for name, value in beside if name not in {*SET_BY_LIBRARIES, "_"}}
        expected = told["all"] | told[f"worker {rank}"]
        # What was set so before is not set beside it.
        expected = dict(expected.items() - clean_environment().items())
        expected.pop("OMP_NUM_THREADS", None)
        assert real.keys() == expected.keys()
        for name, value in expected.items():
            assert real[name] == value or "<" in value


def dry(*arguments: object, cwd: Path) -> Completed:
    """A dry run in a process that fails where torch has been imported."""
    program = (
        "import sys\n"
        "from launch.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_job_is_told_as_it_is_resolved_and_nothing_is_imported_or_made(
    digits: Path, tmp_path: Path
) -> None:
    changes = ("--data.path", str(digits), "--optimizer.lr", "0.25", "--run.dir", "here")
    done = dry("train", JOB, "--workers", "2:4", "--dry-run", *changes, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    head, _, job = done.stdout.partition("\nJOB.toml, the job as resolved:\n")
    (tmp_path / "JOB.toml").write_text(job)
    assert read_job(tmp_path / "JOB.toml") == override(read_job(JOB), changes, prog="")
    assert "workers     4, of 2:4 of this machine, on torch elastic" in head
    assert "each runs   launch.worker job JOB.toml" in head
    assert "folder      here (new)" in head
    assert "logs        rank0 on the terminal, all in here/logs" in head
    variables = told_variables(head)
    assert variables["all"]["DISTRAIN_WORKERS"] == "2:4"
    assert [variables[f"worker {rank}"]["RANK"] for rank in range(4)] == list("0123")
    assert all(len(line) <= 80 for line in head.splitlines())


@pytest.mark.parametrize(
    ("more", "workers", "variables"),
    [
        (("--workers", 1), "1, in this command's own process", {"it"}),
        (
            (),
            "one for each GPU, on torch elastic; without any, 1 in this command's\n"
            "            own process (--workers is not given)",
            None,
        ),
        (
            ("--workers", 2, "--nodes", "2:3", "--rendezvous", "host:1"),
            "2 of each machine, on torch elastic",
            {"all", "worker 0", "worker 1"},
        ),
    ],
)
def test_where_workers_are_is_told(
    digits: Path,
    tmp_path: Path,
    more: Sequence[object],
    workers: str,
    variables: set[str] | None,
) -> None:
    done = dry("train", JOB, "--data.path", digits, *more, "--dry-run", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"workers     {workers}\n")
    assert set(told_variables(done.stdout)) == (variables or {"all", "each"})


@pytest.mark.horovod
def test_a_start_on_hosts_is_told_as_it_is_and_refused_as_it_is(
    digits: Path, tmp_path: Path
) -> None:
    horovod = ("--parallel.backend", "horovod")
    job = ("train", JOB, "--data.path", digits, *horovod, "--run.dir", "runs/x", "--dry-run")
    done = dry(*job, "--hosts", "node1:2,node2:1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    head, _, told = done.stdout.partition("\nJOB.toml, the job as resolved:\n")
    (tmp_path / "JOB.toml").write_text(told)
    assert read_job(tmp_path / "JOB.toml").parallel.backend == "horovod"
    assert head.startswith("workers     3 on Horovod: 2 on node1, 1 on node2\n")
    runs = shlex.split(head.partition("\nruns")[2].partition("\nin  ")[0])
    shared = str(tmp_path / "runs" / ".distrain-...")
    assert runs[:4] == [sys.executable, "-m", "launch.horovod.horovodrun", "<this process>"]
    assert runs[4:9] == ["--gloo", "-np", "3", "-H", "node1:2,node2:1"]
    assert runs[9:] == [*(sys.executable, "-m", "launch.horovod.worker", shared), "job", "JOB.toml"]
    assert "logs        rank0 on the terminal, all in runs/x/logs" in head
    assert told_variables(head)["worker 2"]["HOROVOD_HOSTNAME"] == "node2"
    for hosts, code in (("a:9", 78), ("a", 64)):
        assert dry(*job, "--hosts", hosts, cwd=tmp_path).returncode == code
    assert dry(*job[:4], "--hosts", "a:1", "--dry-run", cwd=tmp_path).returncode == 78


def test_what_a_start_would_refuse_is_refused(digits: Path, tmp_path: Path) -> None:
    data = ("--data.path", digits)
    for more, code in (
        (("--workers", 0), 64),
        (("--data.path", tmp_path / "gone"), 65),
        ((*data, "--optimizer.momentum", 0), 78),
        ((*data, "--workers", "9"), 78),
        ((*data, "--workers", "1:2", "--parallel.backend", "horovod"), 78),
    ):
        done = dry("train", JOB, *more, "--dry-run", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert done.stdout == ""


def test_a_scripts_arguments_are_told_as_a_shell_would_take_them(tmp_path: Path) -> None:
    script = tmp_path / "a script.py"
    script.touch()
    hostile = ["; rm -rf /", "a\nb", "'\"$(id)`", "ü", "--dry-run"]
    done = dry("launch", "--workers", 2, "--dry-run", script, *hostile, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.partition("each runs")[2].partition("\nin  ")[0]
    assert shlex.split(told) == ["launch.worker", "script", str(script), *hostile]
    assert list(tmp_path.iterdir()) == [script]
