"""Names, folders and surroundings of a start that are strange: refused in words, or no matter."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from distrain.errors import UsageError
from launch.local import refuse_as_worker
from tests.alone import distrain_alone
from tests.conftest import PROGRAMS
from tests.hosts import why_not
from tests.started import JOB, Started

LONG = "x" * 300
TOO_LONG = "can't be read: File name too long"
HOSTILE = "; rm -rf 'q' \"$(touch gone)\" `id`\n.. ü 日本"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("train", f"{LONG}.toml"), 64, f"the job file {LONG[:80]!r}... {TOO_LONG}"),
        (("train", "/proc/self/mem"), 64, "/proc/self/mem can't be read: Input/output error"),
        (("launch", f"{LONG}.py"), 64, f"the script {LONG}.py {TOO_LONG}"),
        (("train", JOB, "--data.path", LONG), 65, f"the data set at {LONG} {TOO_LONG}"),
        (("status", LONG), 64, f"{LONG}/status.json: File name too long"),
    ],
)
def test_what_cannot_be_looked_at_is_named(
    tmp_path: Path, arguments: tuple[object, ...], code: int, said: str
) -> None:
    done = distrain_alone(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr.strip().endswith(said)) == (code, True), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_job_is_called_what_its_file_is_called(digits: Path, tmp_path: Path) -> None:
    job, data = tmp_path / f"{HOSTILE}.toml", tmp_path / "a 'data' set\n"
    job.write_text(JOB.read_text())
    data.symlink_to(digits)
    given = ("train", job, "--data.path", data, "--training.epochs", 1, "--workers", 1)
    done = distrain_alone(*given, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [HOSTILE]
    assert (tmp_path / "runs" / HOSTILE / "model.safetensors").exists()
    assert {path.name for path in tmp_path.iterdir()} == {job.name, data.name, "runs"}


SCRIPT = """
import os, pathlib, sys
print("nobody reads this")
print("nor this", file=sys.stderr)
pathlib.Path(os.environ["RANK"]).touch()
"""


def test_workers_do_their_work_where_all_standard_streams_are_closed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    closed = ("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh")
    with Started("launch", "--workers", 2, script, cwd=tmp_path, within=closed) as run:
        assert run.ends() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"0", "1", script.name}


def test_a_folder_for_temporary_files_that_is_too_long_for_a_socket_is_named(
    tmp_path: Path,
) -> None:
    folder = tmp_path / ("t" * 100)
    folder.mkdir()
    script = tmp_path / "script.py"
    script.touch()
    with Started("launch", "--workers", 2, script, environment={"TMPDIR": str(folder)}) as run:
        assert run.ends() == 64
    assert run.said == (
        f"distrain: the folder for temporary files, {folder}, is too long for a socket in it, "
        "whose path has 107 bytes at most: set TMPDIR to a shorter one"
    )
    assert list(folder.iterdir()) == []


def test_a_network_interface_that_is_not_there_is_named_and_nothing_tried_again() -> None:
    program = (PROGRAMS / "failing.py", "raise", 0)
    given = {"GLOO_SOCKET_IFNAME": "nope0"}
    with Started("launch", "--workers", 2, "--max-restarts", 3, *program, environment=given) as run:
        assert run.ends() == 64
    assert "GLOO_SOCKET_IFNAME is nope0, and this machine has no such network" in run.said
    assert len(run.lines) == 1


@pytest.mark.skipif(bool(why_not()), reason=f"no mounts of its own: {why_not()}")
def test_a_shared_memory_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.touch()
    mounted = 'mount -t tmpfs -o ro tmpfs /dev/shm && exec "$@"'
    within = ("unshare", "--mount", "sh", "-c", mounted, "sh")
    with Started("launch", "--workers", 2, script, within=within) as run:
        assert run.ends() == 74
    assert run.said.startswith("distrain: the workers can't be started: what they need in /dev/shm")
    assert run.said.endswith("can't be written (Read-only file system)")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HOROVOD_SIZE": "2"}, "HOROVOD_SIZE is 2: each of horovodrun's workers would start"),
        (
            {"WORLD_SIZE": "4", "RANK": "1", "TORCHELASTIC_RUN_ID": "none"},
            "WORLD_SIZE is 4: each of torchrun's workers would start workers of its own; leave "
            "--workers and --max-restarts out, start it without torchrun, or unset WORLD_SIZE",
        ),
        ({"WORLD_SIZE": "4", "RANK": "1"}, "WORLD_SIZE is 4: each of its launcher's workers"),
    ],
)
def test_one_of_several_workers_starts_none(environment: Mapping[str, str], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        refuse_as_worker(environment)
    assert str(refused.value).startswith(said)
    dry = ("launch", "--workers", 2, "--dry-run", PROGRAMS / "failing.py")
    done = distrain_alone(*dry, environment=environment)
    assert (done.returncode, done.stderr) == (64, f"distrain: {refused.value}\n")


@pytest.mark.parametrize(
    "environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "3"}, {"WORLD_SIZE": "2"}]
)
def test_who_is_no_worker_may_start_some(environment: Mapping[str, str]) -> None:
    refuse_as_worker(environment)
