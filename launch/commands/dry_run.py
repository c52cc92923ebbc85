"""`--dry-run`: what would be started, exactly, and is not."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Self

from distrain.config import Backend, Job
from distrain.coordinator.run_status import read_status
from distrain.errors import UsageError
from distrain.job_file import job_tables, job_toml
from launch.commands.job_checks import (
    described_job,
    fitting_workers,
    granted_restarts,
)
from launch.commands.train_command import Asked, job_on_hosts, worker_command
from launch.horovod.host_list import Hosts
from launch.horovod.rules import check_on_one_machine
from launch.local import GRACE_S, refuse_as_worker, works_alone
from launch.machines.node_range import NodeRange
from launch.number_range import NumberRange
from launch.output.logs import Logs
from launch.worker_variables import Group, of_all_on_hosts, of_one_alone

_LABEL, _COLUMNS = 12, 80

_EACH_RUNS, _RUNS = _COMMANDS = "each runs", "runs"

_AS_WRITTEN = "what is written goes to this command's own output as it is"


@dataclass(frozen=True)
class Start:
    """A start of workers, as `launch.local.run_workers` is told of it.

    Attributes:
        command: The arguments of `launch.worker`.
        workers: None where there is one for each GPU, or one.
        run: The folder of a job's run; None for a script, which has its own.
    """

    command: Sequence[str]
    workers: NumberRange | None
    max_restarts: int
    grace_s: float
    backend: Backend
    run: Path | None
    nodes: NodeRange | None
    logs: Logs | None

    def lines(self, environment: Mapping[str, str]) -> list[str]:
        """What would be started, for a person; `environment` is the launcher's own."""
        command = shlex.join(["launch.worker", *self.command])
        workers = self.workers
        if workers is not None and self._is_alone(workers):
            facts = {"workers": "1, in this command's own process", _RUNS: command}
            logs = {"logs": _AS_WRITTEN}
            folder = _folder(self.run)
            return [*_labelled(facts | folder | logs), *_set({"it": of_one_alone()})]
        group = Group(
            self.workers,
            self.backend,
            self.nodes,
            None if self.logs is None else self.logs.shown,
            takes_requests=self.run is not None and self.nodes is None and self._is_elastic,
            environment=environment,
        )
        facts = {
            "workers": self._count(),
            _EACH_RUNS: command,
            "in": "a process that is forked from one with torch imported, and named by its rank",
            "rendezvous": self._rendezvous(),
            **_limits(self.max_restarts, self.grace_s),
        }
        each = {f"worker {at}": variables for at, variables in enumerate(group.of_each())}
        each = each if self.workers is not None else {"each": group.of_each()[0]}
        logs = {"logs": _AS_WRITTEN if self.logs is None else str(self.logs)}
        folder = _folder(self.run)
        return [*_labelled(facts | folder | logs), *_set({"all": group.of_all()} | each)]

    def checked(self, environment: Mapping[str, str]) -> Self:
        """The same, if it can be started; `environment` is the launcher's own.

        Raises:
            ConfigError: Horovod is not there, or has no such workers.
            UsageError: it is in a worker of another launcher.
        """
        if self.backend == "horovod":
            check_on_one_machine(is_fixed=not self._is_elastic and self.nodes is None)
        if self.workers is not None and not self._is_alone(self.workers):
            refuse_as_worker(environment)
        return self

    def _is_alone(self, workers: NumberRange) -> bool:
        return works_alone(workers, self.max_restarts, self.nodes, self.logs)

    @property
    def _is_elastic(self) -> bool:
        return self.workers is not None and self.workers.is_elastic

    def _count(self) -> str:
        by = "Horovod" if self.backend == "horovod" else "torch elastic"
        if self.workers is None:
            return (
                f"one for each GPU, on {by}; without any, 1 in this command's own process "
                "(--workers is not given)"
            )
        more = f", of {self.workers}" if self.workers.is_elastic else ""
        where = "of this machine" if self.nodes is None else "of each machine"
        return f"{self.workers.most}{more} {where}, on {by}"

    def _rendezvous(self) -> str:
        if self.nodes is not None:
            machines = NumberRange(self.nodes.least, self.nodes.most)
            rank = self.nodes.node_rank
            kept = {None: "kept by who has its address", 0: "kept here"}.get(rank, "kept by node 0")
            return f"{self.nodes.place}, of {machines} machines, {kept}"
        if self.backend == "horovod":
            return "Horovod's server, on loopback at a free port"
        return "in a file; the workers' store is on loopback at a free port"


@dataclass(frozen=True)
class StartOnHosts:
    """A start of Horovod's workers, as `launch.horovod.hosts.run_on_hosts` is told of it.

    Attributes:
        command: The arguments of `launch.worker`.
        shared: In which a folder is made for the time of the launch.
        run: The folder of a job's run; None for a script, which has its own.
    """

    command: Sequence[str]
    hosts: Hosts
    shared: Path
    max_restarts: int
    grace_s: float
    run: Path | None
    logs: Logs | None

    def lines(self, environment: Mapping[str, str]) -> list[str]:
        """What would be started, for a person; `environment` is the launcher's own."""
        own = self.shared.absolute() / ".distrain-..."
        where = ", ".join(f"{number} on {host}" for host, number in self.hosts.slots)
        facts = {
            "workers": f"{self.hosts.workers} on Horovod: {where}",
            _RUNS: shlex.join(self.hosts.command("<this process>", own, self.command)),
            "in": "a process for each worker, which horovodrun starts on its host: by ssh, unless "
            "that is this one",
            "report by": f"the files of {own}, a new folder on a disk that all hosts have",
            "rendezvous": "horovodrun's server, on every address of this host at a free port",
            **_limits(self.max_restarts, self.grace_s),
        }
        logs = {"logs": _AS_WRITTEN if self.logs is None else str(self.logs)}
        each = {f"worker {at}": found for at, found in enumerate(self.hosts.variables())}
        alike = {"all": of_all_on_hosts(self.hosts, environment)}
        return [*_labelled(facts | _folder(self.run) | logs), *_set(alike | each)]


def _limits(max_restarts: int, grace_s: float) -> dict[str, str]:
    return {
        "restarts": f"{max_restarts} at most, where a worker is lost",
        "grace time": f"{grace_s:g} s from a signal until workers are killed",
    }


def _folder(run: Path | None) -> dict[str, str]:
    if run is None:
        return {}
    try:
        state = f"a run is there: {read_status(run).state}"
    except UsageError:
        state = "new"
    return {"folder": f"{run} ({state})"}


def _labelled(facts: Mapping[str, str]) -> list[str]:
    """In lines of 80 columns, but for commands, which stay as they are."""
    found = []
    for label, text in facts.items():
        parts = [text] if label in _COMMANDS else wrap(text, _COLUMNS - _LABEL)
        found += [f"{label:<{_LABEL}}{parts[0]}", *(" " * _LABEL + part for part in parts[1:])]
    return found


def _set(variables: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines = ["", "set beside this command's own environment:"]
    for who, found in variables.items():
        lines.append(f"  for {who}" if len(found) > 3 else f"  for {who}:")
        assigned = [f"{name}={shlex.quote(value)}" for name, value in found.items()]
        if len(found) > 3:
            lines += [f"    {each}" for each in assigned]
        else:
            lines[-1] += " " + " ".join(assigned)
    return lines


def of_job(asked: Asked) -> None:
    """Prints what `launch.commands.train_command.train` would start, and the job as resolved.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run.
    """
    job, plan = described_job("train", asked.job, asked.overrides)
    workers = asked.workers
    if workers is not None:  # else torch would have to count GPUs
        workers = fitting_workers(plan, workers, asked.nodes)
    run = Path(str(job.run.dir))
    start = Start(
        worker_command("JOB.toml", fresh=asked.fresh),
        workers,
        granted_restarts(asked.max_restarts, workers, asked.nodes),
        job.run.grace_s,
        job.parallel.backend,
        run,
        asked.nodes,
        Logs.of_run(run, asked.shown, asked.log_dir),
    )
    _show(start.checked(os.environ).lines(os.environ), job)


def of_job_on_hosts(asked: Asked, hosts: Hosts) -> None:
    """Prints what `launch.commands.train_command.train_on_hosts` would start, and the job.

    Raises:
        UsageError, ConfigError, DataError: the job can't be run.
    """
    job = job_on_hosts(asked, hosts)
    run = Path(str(job.run.dir))
    start = StartOnHosts(
        worker_command("JOB.toml", fresh=asked.fresh),
        hosts,
        run.parent,
        granted_restarts(asked.max_restarts),
        job.run.grace_s,
        run,
        Logs.of_run(run, asked.shown, asked.log_dir),
    )
    _show(start.lines(os.environ), job)


def _show(lines: Sequence[str], job: Job) -> None:
    text = job_toml(job_tables(job)).decode().rstrip()
    print("\n".join([*lines, "", "JOB.toml, the job as resolved:", "", text]))


def of_script(
    command: Sequence[str],
    workers: NumberRange | None,
    max_restarts: int | None,
    backend: Backend,
    nodes: NodeRange | None,
    logs: Logs | None,
) -> None:
    """Prints what `distrain launch` would start.

    Raises:
        ConfigError: the workers can't be.
    """
    restarts = max_restarts or 0
    start = Start(command, workers, restarts, GRACE_S, backend, None, nodes, logs)
    print("\n".join(start.checked(os.environ).lines(os.environ)))


def of_script_on_hosts(
    command: Sequence[str], hosts: Hosts, max_restarts: int, logs: Logs | None
) -> None:
    """Prints what `distrain launch --hosts` would start."""
    start = StartOnHosts(command, hosts, Path.cwd(), max_restarts, GRACE_S, None, logs)
    print("\n".join(start.lines(os.environ)))
