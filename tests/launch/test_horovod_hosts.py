"""Horovod's workers on several hosts, by horovodrun: where they run, how they end, what is told."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from distrain.errors import ConfigError, UsageError
from launch.failure import Report
from launch.horovod.environment import leave_environment, shown
from launch.horovod.host_list import Hosts
from launch.horovod.hosts import cause_of
from launch.horovod.lines import HorovodrunLines
from launch.horovod.rules import check_on_hosts
from tests.conftest import PROGRAMS, Completed
from tests.run_folders import last_step, named, outcome, status
from tests.started import (
    FAULTY_JOB,
    STOPPED,
    Started,
    builds,
    has_line,
    to_end_faulty,
    unbroken_faulty,
)

HOSTS = ("--hosts", "127.0.0.1:1,localhost:1", "--network-interfaces", "lo")
HOROVOD = ("--parallel.backend", "horovod")

KILLED_WITHIN_S = 15.0
"""horovodrun gives its workers 5 s."""

SSH = """\
#!/bin/sh
# ssh -o A -o B HOST [-o C] COMMAND: into the network that HOST's address belongs to.
host=
while [ -z "$host" ]; do case $1 in -o) shift 2 ;; *) host=$1; shift ;; esac; done
[ "$1" != -o ] || shift 2
echo "$host" >>"$SSH_LOG"
echo "$*" >>"$SSH_LOG.words"
exec ip netns exec "$SSH_NETWORKS-${host##*.}" sh -c "$*"
"""


def started(
    digits: Path,
    folder: Path,
    *more: object,
    environment: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> Started:
    job = folder.with_name("faulty.toml")
    job.write_text(FAULTY_JOB.format(digits=digits))
    command = ("train", job, "--run.dir", folder, *HOROVOD, *more)
    return Started(*command, cwd=PROGRAMS, within=within, environment=environment)


@pytest.fixture
def two_networks(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two hosts, as far as their networks go, with a link between them; what ssh needs."""
    ours = f"distrain-{os.getpid()}"  # of another run of the tests they are others
    names = (f"{ours}-1", f"{ours}-2")
    hosts = [Path("/etc/netns") / name for name in names]  # where ip looks for a host's /etc

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        link = ("ring0", "type", "veth", "peer", "ring0", "netns", names[1])
        ip("-n", names[0], "link", "add", *link)
        for number, name in enumerate(names, start=1):
            # Horovod also connects to what the host's own name stands for.
            hosts[number - 1].mkdir(parents=True)
            (hosts[number - 1] / "hosts").write_text(
                f"127.0.0.1 localhost\n10.213.7.{number} {socket.gethostname()}\n"
            )
            ip("-n", name, "address", "add", f"10.213.7.{number}/24", "dev", "ring0")
            ip("-n", name, "link", "set", "ring0", "up")
        commands = tmp_path / "commands"
        commands.mkdir()
        (commands / "ssh").write_text(SSH)
        (commands / "ssh").chmod(0o755)
        path = f"{commands}{os.pathsep}{os.environ['PATH']}"
        told = {"PATH": path, "SSH_NETWORKS": ours, "HOME": str(tmp_path)}
        yield told | {"SSH_LOG": str(tmp_path / "ssh.log")}
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        for folder in hosts:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.horovod
@pytest.mark.skipif(os.geteuid() != 0, reason="networks of their own need root")
def test_workers_on_two_networks_give_the_bits_of_one_worker(
    digits: Path, tmp_path: Path, two_networks: dict[str, str]
) -> None:
    folder = tmp_path / "run"
    hosts = ("--hosts", "10.213.7.1:1,10.213.7.2:1", "--network-interfaces", "ring0")
    within = ("ip", "netns", "exec", f"{two_networks['SSH_NETWORKS']}-1")
    # The model reads it: it has to come to the other host, though no command line holds it.
    environment = two_networks | {"CALLS": str(tmp_path / "calls")}
    with started(digits, folder, *hosts, within=within, environment=environment) as run:
        assert (run.ends(), run.said) == (0, "")
    assert outcome(folder) == unbroken_faulty(digits)
    assert (builds(tmp_path / "calls"), has_line(tmp_path / "calls-1", "build")) == (1, True)
    assert "CALLS" not in (tmp_path / "ssh.log.words").read_text()
    # The first host is this one: horovodrun needs no ssh for it.
    assert set((tmp_path / "ssh.log").read_text().split()) == {"10.213.7.2"}
    log = (folder / "logs" / "start-0001-rank-0.log").read_text()
    assert "2 micro-batches of 128" in log
    assert not list(tmp_path.glob(".distrain-*"))


@pytest.mark.horovod
def test_a_stop_saves_and_the_run_goes_on_to_the_same_bits(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(digits, folder, *HOSTS, environment={"STEP_S": "0.1"}) as run:
        run.until(lambda: last_step(folder) >= 3)
        run.process.send_signal(signal.SIGTERM)
        assert run.ends() == 75, run.said
        assert run.said == f"distrain: stopped by SIGTERM, {STOPPED}"
    assert (status(folder)["state"], status(folder)["step"]) == ("stopped", last_step(folder))
    stopped_at = last_step(folder)
    assert to_end_faulty(digits, folder) == unbroken_faulty(digits)
    assert [event["step"] for event in named(folder, "resume")] == [stopped_at]


@pytest.mark.horovod
def test_a_killed_worker_is_named_and_costs_a_restart_and_no_bit(
    digits: Path, tmp_path: Path
) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": "1:lose:0", "CALLS": str(calls)}
    with started(digits, folder, *HOSTS, environment=fault) as run:
        assert run.ends() == 0, run.said
    assert run.said.splitlines() == [
        "distrain (rank 1): worker 1 was killed by SIGKILL",
        "distrain: all workers start again (restart 1 of 10)",
    ]
    assert outcome(folder) == unbroken_faulty(digits)


@pytest.mark.horovod
def test_a_fault_of_the_program_is_told_once_with_its_code(digits: Path, tmp_path: Path) -> None:
    folder, calls = tmp_path / "run", tmp_path / "calls"
    fault = {"FAULT": "1:raise:4", "CALLS": str(calls)}
    with started(digits, folder, *HOSTS, environment=fault) as run:
        assert run.ends() == 70, run.said
    assert run.said.startswith("distrain (rank 1): Traceback")
    assert run.said.count("ValueError: planted in the model") == 1
    assert "Horovod detected" not in run.said
    assert builds(calls) == 1
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("failed", 70)


@pytest.mark.horovod
def test_nothing_outlives_a_launcher_that_is_killed(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with started(digits, folder, *HOSTS, environment={"STEP_S": "0.1"}) as run:
        run.until(lambda: last_step(folder) >= 3)
        left = psutil.Process(run.process.pid).children(recursive=True)
        assert len(left) >= 5  # horovodrun, and of each worker more than itself
        run.process.kill()
        _, alive = psutil.wait_procs(left, timeout=KILLED_WITHIN_S)
        assert not alive
    assert to_end_faulty(digits, folder) == unbroken_faulty(digits)


def launched(folder: Path, program: str, *more: object, **environment: str) -> Started:
    """A script on Horovod's workers."""
    script = folder / "script.py"
    script.write_text(program)
    options = ("--backend", "horovod", "--max-restarts", 0, *(more or ("--hosts", "localhost:1")))
    return Started("launch", *options, script, cwd=folder, environment=environment)


RAISES = "from {module}.errors import {error}\nraise {error}('planted')\n"


@pytest.mark.horovod
@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        (RAISES.format(module="distrain", error="UsageError"), 64, "planted"),
        (RAISES.format(module="data_pipeline", error="DataError"), 65, "planted"),
        ("import os\nos.kill(os.getpid(), 9)\n", 69, "worker 0 was killed by SIGKILL"),
        (RAISES.format(module="data_pipeline", error="StorageError"), 74, "planted"),
    ],
    ids=["usage", "data", "killed", "storage"],
)
def test_what_a_worker_ends_by_is_how_the_command_ends(
    tmp_path: Path, program: str, code: int, said: str
) -> None:
    with launched(tmp_path, program) as run:
        assert (run.ends(), run.said) == (code, f"distrain: {said}")


SSH_OF = """\
#!/bin/sh
# The check that a host is reached is any command; a worker's is not.
case $* in *launch.horovod.worker*) {worker} ;; esac
"""


@pytest.mark.horovod
@pytest.mark.parametrize(
    ("ssh", "code", "said"),
    [
        ("#!/bin/sh\necho no route >&2\nexit 255\n", 69, "not successful for host 192.0.2.1"),
        (
            SSH_OF.format(worker="echo no such program >&2; exit 127"),
            78,
            f"worker 1 could not begin on its host (exit code 127): each host needs "
            f"{sys.executable} with the same packages",
        ),
        (SSH_OF.format(worker="exit 255"), 69, "the ssh connection to worker 1 was lost"),
    ],
    ids=["unreachable", "no program", "cut off"],
)
def test_a_host_that_is_not_as_it_should_be_is_told_with_what_it_says(
    tmp_path: Path, ssh: str, code: int, said: str
) -> None:
    (tmp_path / "ssh").write_text(ssh)
    (tmp_path / "ssh").chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    hosts = ("--hosts", "localhost:1,192.0.2.1:1", "--network-interfaces", "lo")
    with launched(tmp_path, "", *hosts, "--logs", "failed", **path) as run:
        assert run.ends() == code, run.said
    assert said in run.said
    if code == 78:
        assert "\n[rank 1] no such program\n" in f"\n{run.said}"
    if "successful" in said:
        assert "Is each host reached by ssh without a password" in run.said


@pytest.mark.horovod
def test_ranks_are_those_that_horovod_gives() -> None:
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts  # noqa: PLC0415
    from horovod.runner.gloo_run import create_slot_env_vars  # noqa: PLC0415

    for text in ("a:1", "a:2,b:1,c:3", "a:4,b:4"):
        hosts = Hosts.parse(text)
        slots = get_host_assignments(parse_hosts(text), hosts.workers)
        size = {"HOROVOD_SIZE": str(hosts.workers)}
        found = [variables | size for variables in hosts.variables()]
        assert found == [create_slot_env_vars(slot) for slot in slots]


def test_a_working_directory_that_a_shell_might_take_for_more_is_refused(
    distrain: Callable[..., Completed], tmp_path: Path
) -> None:
    for name in ("a b", "a;reboot", "$(reboot)", "a\nb", "it's"):
        (tmp_path / name).mkdir()
        done = distrain("train", "x.toml", "--hosts", "a:1", cwd=tmp_path / name)
        assert done.returncode == 64
        assert "which horovodrun would paste into a shell on each host" in done.stderr


def test_what_starts_programs_is_shown_and_the_rest_is_not(tmp_path: Path) -> None:
    seen = {"PATH": "/bin", "PYTHONPATH": "x", "LD_LIBRARY_PATH": "y", "HOROVOD_LOG_LEVEL": "info"}
    seen |= {"CUDA_VISIBLE_DEVICES": "1", "SSH_AUTH_SOCK": "/run/x"}
    hidden = {"LDAP_PASSWORD": "x", "HF_TOKEN": "y", "SSHPASS": "z", "A B;reboot": "ü\n", "_": "w"}
    assert shown(seen | hidden) == seen
    leave_environment(tmp_path, seen | hidden)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text()) == hidden


class Output:
    """Takes what `HorovodrunLines` hands on."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, int, bytes]] = []

    def take(self, rank: int, stream: int, data: bytes) -> None:
        self.taken.append((rank, stream, data))


def test_lines_are_told_apart_by_worker_and_stream_and_from_horovodruns_own() -> None:
    written = (
        b"[0]<stdout>:a\n[12]<stderr>:\xff\n[0]<stdout>: 1%\r[0]<stdout>: 2%\r[1]<stdout>:b\n"
        b"Process 12 exit with status code 137.\nProcess 0 exit with status code 143.\n"
        b"[12]<stderr>:Killed\n[1]<stdout>:Process 3 exit with status code 1.\n[1]<stdout>:no end"
    )
    output = Output()
    lines = HorovodrunLines(output)  # type: ignore[arg-type]
    lines.read(io.BytesIO(written), sys.stdout)
    assert output.taken == [
        (0, 1, b"a\n"),
        (12, 2, b"\xff\n"),
        (0, 1, b" 1%\r"),
        (0, 1, b" 2%\r"),
        (1, 1, b"b\n"),
        (1, 1, b"Process 3 exit with status code 1.\n"),
        (1, 1, b"no end"),
    ]
    assert lines.first == {12: 137}
    assert len(lines.own) == 2


@pytest.mark.parametrize(
    "hosts",
    [
        *("", "a", "a:0", "a:x", ":2", "a:1,", "a:1,a:1", "-o:1", "a b:1", "a;reboot:1"),
        *("$(reboot):1", "a\n:1", "a:1\n", "ä:1", "a" * 300 + ":1", "a:99999", "../a:1"),
    ],
)
def test_hosts_that_a_shell_might_take_for_more_are_refused(hosts: str) -> None:
    with pytest.raises(UsageError, match="--hosts"):
        Hosts.parse(hosts)


@pytest.mark.parametrize("interfaces", ["", "a b", "eth0;reboot", "-x", "eth0,", "a" * 16])
def test_interfaces_are_names(interfaces: str) -> None:
    with pytest.raises(UsageError, match="--network-interfaces"):
        Hosts.parse("a:1", interfaces)


def test_hosts_are_those_of_horovodrun() -> None:
    hosts = Hosts.parse("node1:4,10.0.0.2:2", "eth0,ib0")
    assert (hosts.workers, str(hosts)) == (6, "node1:4,10.0.0.2:2")
    command = hosts.command("7", Path("/shared/x"), ["job", "/a b.toml"])
    assert command[command.index("-np") + 1] == "6"
    assert command[command.index("--network-interfaces") + 1] == "eth0,ib0"
    assert command[-3:] == ["/shared/x", "job", "/a b.toml"]


def test_hosts_are_for_horovod_alone() -> None:
    with pytest.raises(ConfigError, match="--hosts is for Horovod, and the backend is 'torch'"):
        check_on_hosts("torch")


@pytest.mark.parametrize("more", [("--workers", "2"), ("--nodes", "2", "--rendezvous", "a:1")])
def test_hosts_say_how_many_workers_there_are(
    distrain: Callable[..., Completed], tmp_path: Path, more: tuple[str, ...]
) -> None:
    done = distrain("train", "x.toml", "--hosts", "a:1", *more, cwd=tmp_path)
    assert done.returncode == 64
    assert f"leave {more[0]} out" in done.stderr


def report(rank: int, code: int, time_ns: int = 0) -> Report:
    return Report(rank, time_ns, code, f"{rank} said {code}", lost_peer=code == 69)


def test_the_cause_is_the_failure_and_not_what_horovodrun_makes_of_the_others() -> None:
    stopped, failed = report(0, 75, 1), report(1, 70, 2)
    found = cause_of([stopped, failed], 1, {1: 70}, [], asked=None, begun={0, 1})
    assert found is not None
    assert (found.rank, found.exit_code) == (1, 70)
    lost = cause_of([report(0, 69)], 1, {1: 137}, [], asked=None, begun={0, 1})
    assert lost is not None
    assert (lost.exit_code, lost.text) == (69, "worker 1 was killed by SIGKILL")
    asked = cause_of([report(0, 75), report(1, 75)], 0, {}, [], asked=signal.SIGTERM, begun={0})
    assert asked is not None
    assert asked.exit_code == 75
    assert cause_of([], 0, {}, [], asked=None, begun={0, 1}) is None
    # Who never began is the cause, and not who has waited for it.
    apart = cause_of([report(0, 69)], 1, {1: 127}, [], asked=None, begun={0})
    assert apart is not None
    assert (apart.rank, apart.exit_code) == (1, 78)
