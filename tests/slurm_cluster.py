"""A SLURM of a test's own on this host: its daemons, four nodes by name, and how to ask it.

All that it starts lives in one process namespace, and dies with the process that keeps it, which
dies with the tests. Its nodes' names stand in an /etc/hosts that only it sees, and its network is a
loopback of its own: the ports of its daemons and of its jobs, which go by their numbers, are those
of no other cluster on this host.
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

READY_S = 120.0
"""A command that takes longer waits in vain, however busy the machine is."""

_CONTROLLER_PORT, _FIRST_PORT = 6817, 6820

_CONF = """\
ClusterName=distrain
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
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
# Of the usual 10 s each a busy machine takes some, and then a job is thought lost.
MessageTimeout=60
BatchStartTimeout=60
MinJobAge=3600
{nodes}
PartitionName=low Nodes=n0,n1 PriorityTier=1 State=UP
PartitionName=high Nodes=n0,n1 PriorityTier=2 State=UP
PartitionName=main Nodes=n2,n3 Default=YES State=UP
"""

_START = """\
set -e
ip link set lo up
# Where 127.0.0.1 is the only address, getaddrinfo gives daemons none to listen on.
ip address add 127.0.0.2/32 dev lo
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
                *("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
                *("/bin/sh", "-c", _START.format(nodes=" ".join(NODES))),
            ],
            cwd=self._folder,
            env=self.environment,
            start_new_session=True,
        )
        self._network = Path(f"/proc/{self._process.pid}/ns/net")
        try:
            self.until(lambda: not self._network.samefile("/proc/self/ns/net"), READY_S)
            self.until(lambda: self.are_idle(*NODES), READY_S)
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
        command = (sys.executable, "-m", "launch.main", "submit", "slurm", *arguments)
        return self._run(command, cwd, {**self.environment, **(environment or {})})

    def ask(self, *command: object) -> str:
        """What one of SLURM's commands says."""
        done = self._run(command)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _run(
        self,
        command: Sequence[object],
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Runs a command in the cluster's network."""
        return subprocess.run(
            ["nsenter", f"--net={self._network}", *map(str, command)],
            cwd=cwd,
            env=environment or self.environment,
            capture_output=True,
            text=True,
            timeout=READY_S,
            check=False,
        )

    def job(self, number: str) -> dict[str, str]:
        """What SLURM knows of a job, such as JobState, ExitCode and Restarts."""
        fields = self.ask("scontrol", "--oneliner", "show", "job", number).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def are_idle(self, *nodes: str) -> bool:
        """Whether these nodes are up and have no job; False where nobody answers."""
        names = ("--nodes", ",".join(nodes), "--partition", "low,main")
        done = self._run(["sinfo", "--noheader", "--Node", *names, "--format", "%t"])
        return done.stdout.split() == ["idle"] * len(nodes)

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

    def _configure(self) -> None:
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1"
            for port, name in enumerate(NODES, start=_FIRST_PORT)
        )
        text = _CONF.format(folder=self._folder, host=host, port=_CONTROLLER_PORT, nodes=nodes)
        (self._folder / "slurm.conf").write_text(text)
        (self._folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(NODES)}\n")
        key = self._folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self._folder / name).mkdir()
