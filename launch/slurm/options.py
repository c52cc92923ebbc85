"""What SLURM alone wants to know of a job, and its amounts; checked, since it goes into a script.

A line `#SBATCH --NAME=VALUE` is cut at spaces, quotes and line ends. None of the values here may
have any, so that nothing has to be escaped.
"""

import math
import re
from dataclasses import dataclass

from distrain.errors import UsageError
from launch.job_spec import Resources, quoted
from launch.quantity import as_number
from launch.secret_literals import secret_in

MARGIN_S = 15
"""Workers that don't save within the grace time are killed, which takes a moment more."""

_WORDS = {
    "partition": re.compile(r"[A-Za-z0-9_][-\w.]*(,[A-Za-z0-9_][-\w.]*)*", re.ASCII),
    "account": re.compile(r"[A-Za-z0-9_][-\w.@+]*", re.ASCII),
    "qos": re.compile(r"[A-Za-z0-9_][-\w.@+]*", re.ASCII),
    "constraint": re.compile(r"[A-Za-z0-9_\[(][-\w.&|,*:()\[\]]*", re.ASCII),
    "output": re.compile(r"[A-Za-z0-9_./%][-\w./%@+=,]*", re.ASCII),
}
_TIME = re.compile(r"\d{1,6}(-\d{1,3}(:\d{1,3}){0,2}|(:\d{1,3}){0,2})", re.ASCII)
_NO_TIME = "UNLIMITED"
_SOME = r"\d{1,9}(-\d{1,9}(:[1-9]\d{0,8})?)?"
_SEEDS = re.compile(rf"{_SOME}(,{_SOME})*(%[1-9]\d{{0,8}})?", re.ASCII)
_LONGEST = 1000
_MOST_WARNING_S = 65_535

_SETTING = re.compile(r"([a-z][-a-z0-9]*)(=[-\w./%@+=,:&|()\[\]*?!~^]+)?", re.ASCII)
_SRUN_SETTING = re.compile(r"([a-z][-a-z0-9]*)(=.+)?")

_BY_US = {
    "sbatch": {
        "job-name": "--name",
        "nodes": "--nodes",
        "cpus-per-task": "--cpus",
        "mem": "--memory",
        "gpus-per-node": "--gpus",
        "array": "--seeds",
        **{name: f"--{name}" for name in ("partition", "account", "qos", "time", "constraint")},
        "output": "--output",
        "comment": "",
        **dict.fromkeys(("ntasks", "ntasks-per-node", "open-mode", "requeue", "no-requeue"), ""),
        **dict.fromkeys(("signal", "export", "export-file", "no-kill", "wrap", "input"), ""),
        **dict.fromkeys(("parsable", "test-only", "wait"), ""),
    },
    "srun": {
        "nodes": "--nodes",
        "cpus-per-task": "--cpus",
        **dict.fromkeys(("ntasks", "ntasks-per-node", "export", "kill-on-bad-exit", "wait"), ""),
        **dict.fromkeys(("no-kill", "input", "output", "error", "multi-prog", "pty"), ""),
    },
}
"""By command, the settings that a script says itself, and our options for them."""


@dataclass(frozen=True, kw_only=True)
class SlurmOptions:
    """As `sbatch` has them; None leaves it to the cluster.

    Attributes:
        partition: One or several, by commas.
        account: Who pays.
        qos: Quality of service.
        time: The time limit of a start: minutes, H:M:S, DAYS-HOURS and so on.
        constraint: Features that the nodes must have.
        seeds: One run each, such as 0-4 or 0,3,7; 0-9%2 has two run at a time.
        output: The log; %j is the job's number, %a the seed.
        sbatch: Any other setting of `sbatch`, as NAME or NAME=VALUE.
        srun: The same of the `srun` that starts the launchers.
        setup: Lines for the shell that come before, on the first node; trusted as the job is.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    constraint: str | None = None
    seeds: str | None = None
    output: str | None = None
    sbatch: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    setup: str | None = None

    def __post_init__(self) -> None:
        """Holds each value against what SLURM takes.

        Raises:
            UsageError: one can't stand in a script, or says nothing to SLURM.
        """
        for option, pattern in _WORDS.items():
            given = getattr(self, option)
            if given is not None and (len(given) > _LONGEST or not pattern.fullmatch(given)):
                raise UsageError(
                    f"--{option} is {quoted(given)}, and SLURM's scripts can't hold that: "
                    "letters, digits and the signs that sbatch gives a meaning to"
                )
        if self.time not in (None, _NO_TIME) and not _TIME.fullmatch(self.time or ""):
            raise UsageError(
                f"--time is {quoted(str(self.time))}; give minutes, H:M:S, DAYS-HOURS, DAYS-H:M:S "
                f"or {_NO_TIME}"
            )
        if self.seeds is not None and not _SEEDS.fullmatch(self.seeds):
            raise UsageError(
                f"--seeds is {quoted(self.seeds)}; give numbers such as 0-4, 0,3,7 or 0-9%2"
            )
        for given in self.sbatch:
            _check_setting("sbatch", given, _SETTING)
        for given in self.srun:
            _check_setting("srun", given, _SRUN_SETTING)
        if self.setup is not None:
            _check_setup(self.setup)

    def check_time(self, grace_s: float) -> None:
        """Refuses a time limit within which nothing could be done but save.

        Raises:
            UsageError: it is one, or SLURM can't tell so early.
        """
        if warning_s(grace_s) > _MOST_WARNING_S:
            raise UsageError(
                f"run.grace_s is {grace_s:g}; on SLURM give {_MOST_WARNING_S - MARGIN_S:,} at most"
            )
        if self.time not in (None, _NO_TIME) and seconds(self.time) <= warning_s(grace_s):
            raise UsageError(
                f"--time is {self.time}, and {warning_s(grace_s)} s before the end the run is "
                "asked to save: give more, or lower run.grace_s"
            )


def _check_setting(command: str, given: str, pattern: re.Pattern[str]) -> None:
    found = pattern.fullmatch(given)
    if found is None or len(given) > _LONGEST or not given.isprintable():
        raise UsageError(
            f"--{command} is {quoted(given)}; give a setting of {command} by its long name, as "
            "NAME or NAME=VALUE" + (", with no space or quote in it" if command == "sbatch" else "")
        )
    if found[1] in _BY_US[command]:
        ours = _BY_US[command][found[1]]
        way = f"give {ours} instead" if ours else "leave it out"
        raise UsageError(f"--{command} {found[1]}: the script says that itself; {way}")
    secret = secret_in(given)
    if secret is not None:
        raise UsageError(f"--{command} {found[1]} looks like a secret ({secret}): leave it out")


def _check_setup(text: str) -> None:
    if "\r" in text or "\0" in text:
        raise UsageError("--setup: the file holds NUL or a carriage return: sbatch refuses those")
    secret = secret_in(text)
    if secret is not None:
        raise UsageError(
            f"--setup: the file looks as if it held a secret ({secret}), and SLURM would keep it "
            "with the script: export it where you submit"
        )


def warning_s(grace_s: float) -> int:
    """So many seconds before a start's time limit the launchers are told."""
    return math.ceil(grace_s) + MARGIN_S


def seconds(time: str) -> int:
    """A time limit as SLURM reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash or len(parts) == 3:
        hours, minutes, rest_s = (*parts, 0, 0)[:3]
        return int(days or 0) * 86_400 + hours * 3_600 + minutes * 60 + rest_s
    return parts[0] * 60 + sum(parts[1:])


def cores(resources: Resources, workers: int) -> int | None:
    """Of a node; one a worker where nothing says so, and GPUs don't bring their own.

    Raises:
        UsageError: it is no whole number.
    """
    if resources.cpus is None:
        return None if resources.gpus else workers
    amount = as_number(resources.cpus)
    if amount < 1 or amount.denominator != 1:
        raise UsageError(f"--cpus is {resources.cpus!r}; SLURM gives whole cores")
    return int(amount)


def mebibytes(resources: Resources) -> int | None:
    """The memory of a node, rounded up; SLURM's M is 1024 * 1024 bytes.

    Raises:
        UsageError: it is none.
    """
    if resources.memory is None:
        return None
    amount = math.ceil(as_number(resources.memory) / (1 << 20))
    if amount < 1:
        raise UsageError(f"--memory is {resources.memory!r}; give more than 0, such as 16Gi")
    return amount
