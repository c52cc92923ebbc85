"""A SLURM of a test's own on this host: its daemons, four nodes by name, and how to ask it.

All that it starts lives in one process namespace, and dies with the process that keeps it, which
dies with the tests. Its nodes' names stand in an /etc/hosts that only it sees.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.conftest import ROOT, clean_environment, commands_path

NODES = ("n0", "n1", "n2", "n3")

READY_S = 30.0

_CONF = """\
ClusterName=distrain
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credential has expired; 5 s is the least.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
# Those that become eligible, as requeued jobs do, are looked for every 60 s unless told otherwise.
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
MinJobAge=3600
{nodes}
PartitionName=low Nodes=n0,n1 PriorityTier=1 State=UP
PartitionName=high Nodes=n0,n1 PriorityTier=2 State=UP
PartitionName=main Nodes=n2,n3 Default=YES State=UP
"""

_START = """\
set -e
mount --bind hosts /etc/hosts
munged --foreground --force --socket=$PWD/munge.socket --key-file=$PWD/munge.key \\
  --pid-file=$PWD/munge.pid --log-file=$PWD/munge.log --seed-file=$PWD/munge.seed >munged.log 2>&1 &
until [ -S munge.socket ]; do sleep 0.02; done
slurmctld -D -c -i >slurmctld.log 2>&1 &
for node in {nodes}; do slurmd -D -N $node >slurmd-$node.log 2>&1 & done
wait
"""


class SlurmCluster:
    """A cluster that is up within the block.

    Partitions `low` and `high` are the same two nodes, and who comes to `high` has them; `main` has
    two others. A node has one core, so that no more than four jobs run on the host's.

    Attributes:
        environment: What a command needs to find it, with `distrain` among the commands.
    """

    def __init__(self, folder: Path) -> None:
        """`folder` takes all that it writes."""
        self._folder = folder
        commands = folder / "commands"
        commands.mkdir()
        (commands / "distrain").write_text(
            f'#!/bin/sh\nexec {sys.executable} -m launch.main "$@"\n'
        )
        (commands / "distrain").chmod(0o755)
        self.environment = {
            **clean_environment(),
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{commands}{os.pathsep}{commands_path()}",
        }

    def __enter__(self) -> Self:
        self._configure()
        self._process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("/bin/sh", "-c", _START.format(nodes=" ".join(NODES))),
            ],
            cwd=self._folder,
            env=self.environment,
            start_new_session=True,
        )
        try:
            self.until(lambda: self._states() == ["idle"] * len(NODES), READY_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def submit(
        self, *arguments: object, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `distrain submit slurm`."""
        return subprocess.run(
            [sys.executable, "-m", "launch.main", "submit", "slurm", *map(str, arguments)],
            cwd=cwd,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )

    def ask(self, *command: object) -> str:
        """What one of SLURM's commands says."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job, such as JobState, ExitCode and Restarts."""
        fields = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def until(self, condition: Callable[[], bool], limit_s: float) -> None:
        """Waits until it holds."""
        end = time.monotonic() + limit_s
        while not condition():
            assert self._process.poll() is None, f"SLURM has ended: {self.log()}"
            assert time.monotonic() < end, f"it was waited for in vain: {self.log()}"
            time.sleep(0.1)

    def log(self) -> str:
        """The last words of its daemons."""
        paths = sorted(self._folder.glob("*.log"))
        return "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in paths)

    def _states(self) -> Sequence[str]:
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--partition", "low,main", "--format", "%t"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )
        return done.stdout.split()

    def _configure(self) -> None:
        ports = free_ports(1 + len(NODES))
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        text = _CONF.format(folder=self._folder, host=host, ports=ports, nodes=nodes)
        (self._folder / "slurm.conf").write_text(text)
        (self._folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
        key = self._folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self._folder / name).mkdir()


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
