"""What is to run on a cluster: one description, from which every target's files are rendered.

Nothing here knows of Kubernetes or SLURM but the names that both would refuse, and nothing imports
torch. What is given is held against rules at once, so that what is submitted has been checked.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from distrain.errors import RETRIED, ExitCode, UsageError
from launch.number_range import NumberRange
from launch.secret_literals import secret_in, secret_in_table, secret_in_words

JOB_PATH = "/etc/distrain/job.toml"
"""Where a container finds the job."""

WORKSPACE = "/workspace"
"""The working directory there: the relative paths of a job start here."""

PORT = 29400
"""Where the launchers of a run meet, on the first node; torch elastic's own."""

MOST_NODES = 9_999
MOST_IN_NAME = 45
"""With what a JobSet adds for its 9,999th pod, a name still fits into a host's 63 characters."""

MOST_IN_IMAGE = 255

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CLUSTER_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_SECRET_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CORES = re.compile(r"[0-9]+(\.[0-9]+)?m?")
_BYTES = re.compile(r"[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?")
_IMAGE = re.compile(
    r"[a-z0-9]([-._:a-z0-9]*[a-z0-9])?(/[a-z0-9]([-._a-z0-9]*[a-z0-9])?)*"
    r"(:[A-Za-z0-9_][-.A-Za-z0-9_]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_OF_WORKERS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|(TORCHELASTIC|HOROVOD|DISTRAIN)_.*"
)


@dataclass(frozen=True, kw_only=True)
class JobFile:
    """A job, read and checked at the desk and sent along; TOML, as resolved."""

    toml: str


@dataclass(frozen=True, kw_only=True)
class Script:
    """A program that uses the library, which is there on the nodes: in the image, on a disk.

    Attributes:
        path: Absolute, or from the working directory on.
        arguments: Its own, passed on unread.
    """

    path: str
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks that they can be passed on at all."""
        check_text("the script's path", self.path)
        if not self.path:
            raise UsageError("the script's path is ''; name a job file, or a script of the nodes'")
        for argument in self.arguments:
            check_text("an argument of the script", argument)
        check_no_secret("an argument of the script", secret_in_words(self.arguments))


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one node gives to its workers; amounts as Kubernetes writes them.

    Attributes:
        cpus: Cores, such as 4 or 500m; None leaves it to the cluster.
        memory: Bytes, such as 16Gi.
        gpus: Whole devices.
        shared_memory: Size of /dev/shm, for NCCL and the snapshots between restarts; part of
            `memory`.
    """

    cpus: str | None = None
    memory: str | None = None
    gpus: int = 0
    shared_memory: str = "2Gi"

    def __post_init__(self) -> None:
        """Checks the amounts."""
        if self.cpus is not None and not _CORES.fullmatch(self.cpus):
            raise UsageError(f"--cpus is {quoted(self.cpus)}; give cores, such as 4 or 500m")
        for option, amount in (("memory", self.memory), ("shared-memory", self.shared_memory)):
            if amount is not None and not _BYTES.fullmatch(amount):
                raise UsageError(
                    f"--{option} is {quoted(amount)}; give bytes, such as 16Gi or 500M (m stands "
                    "for thousandths)"
                )
        if self.gpus < 0:
            raise UsageError(f"--gpus is {self.gpus}; give 0 or more")


@dataclass(frozen=True, kw_only=True)
class SecretVariable:
    """An environment variable whose value is a key of a cluster's secret."""

    variable: str
    secret: str
    key: str

    def __post_init__(self) -> None:
        """Checks the names."""
        _check_variable(self.variable)
        check_cluster_name("a secret", self.secret)
        if not _SECRET_KEY.fullmatch(self.key):
            raise UsageError(
                f"a secret's key is {quoted(self.key)}; letters, digits, '-', '_' and '.' alone"
            )


@dataclass(frozen=True, kw_only=True)
class SecretFiles:
    """A cluster's secret as files, one a key, in a folder."""

    secret: str
    path: str

    def __post_init__(self) -> None:
        """Checks the names."""
        check_cluster_name("a secret", self.secret)
        _check_mount(self.path)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A disk.

    Attributes:
        claim: The persistent volume claim that it is; None for one that is empty at each start.
        path: Where it stands.
        read_only: Whether nothing may be written there.
        size: The most that an empty one takes.
    """

    claim: str | None
    path: str
    read_only: bool = False
    size: str | None = None

    def __post_init__(self) -> None:
        """Checks names and size."""
        if self.claim is not None:
            check_cluster_name("a volume claim", self.claim)
        _check_mount(self.path)
        if self.size is not None and not _BYTES.fullmatch(self.size):
            raise UsageError(
                f"the size of {self.path} is {quoted(self.size)}; give bytes, such as 20Gi"
            )


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What runs, where, with what.

    Attributes:
        name: Of all that is made for it; a DNS label.
        program: What runs.
        image: The container's; None where there are no containers.
        nodes: How many machines there may be.
        workers: How many on each.
        resources: Of each node.
        environment: Variables of each node.
        secret_variables: Variables whose values the cluster keeps.
        secret_files: Secrets as files.
        volumes: Data, runs, caches.
        grace_s: Seconds that the launcher gives its workers to save in.
        max_restarts: How often the launcher starts all workers again when one is lost.
        node_retries: How often the cluster starts a node again that failed for no reason of the
            job's.
        retried: The exit codes after which a node is worth another start.
    """

    name: str
    program: JobFile | Script
    image: str | None = None
    nodes: NumberRange = field(default_factory=lambda: NumberRange(1, 1))
    workers: int = 1
    resources: Resources = field(default_factory=Resources)
    environment: Mapping[str, str] = field(default_factory=dict)
    secret_variables: tuple[SecretVariable, ...] = ()
    secret_files: tuple[SecretFiles, ...] = ()
    volumes: tuple[Volume, ...] = ()
    grace_s: float = 30.0
    max_restarts: int = 10
    node_retries: int = 10
    retried: frozenset[int] = RETRIED

    def __post_init__(self) -> None:
        """Checks names, ranges, and that nothing is said twice.

        Raises:
            UsageError: a rule is broken; the message names what was given.
        """
        check_name("--name", self.name, most=MOST_IN_NAME)
        if self.image is not None and not _is_image(self.image):
            raise UsageError(
                f"--image is {quoted(self.image)}; give REGISTRY/NAME@sha256:DIGEST, or "
                "REGISTRY/NAME:TAG"
            )
        if self.nodes.most > MOST_NODES:
            raise UsageError(f"--nodes is {self.nodes}; {MOST_NODES:,} at most")
        for option, count, least in (
            ("--workers", self.workers, 1),
            ("--max-restarts", self.max_restarts, 0),
            ("--node-retries", self.node_retries, 0),
        ):
            if count < least:
                raise UsageError(f"{option} is {count}; give {least} or more")
        if self.grace_s <= 0:
            raise UsageError(f"the grace time is {self.grace_s:g} s; give more than 0")
        for variable, value in self.environment.items():
            _check_variable(variable)
            check_text(f"the variable {variable}", value)
            check_no_secret(f"the variable {variable}", secret_in(value, variable))
        variables = [*self.environment, *(each.variable for each in self.secret_variables)]
        _check_unique("the variable", variables)
        paths = [volume.path for volume in self.volumes]
        _check_unique("the path", [*paths, *(files.path for files in self.secret_files)])
        if isinstance(self.program, JobFile):
            # As text, whose comments go along, and by the names of its fields.
            found = secret_in(self.program.toml) or secret_in_table(_table(self.program.toml))
            check_no_secret("a field of the job", found)

    @property
    def fatal_codes(self) -> tuple[int, ...]:
        """The exit codes of ours that another start would not mend, in order."""
        codes = {*ExitCode} - {ExitCode.DONE, ExitCode.CTRL_C} - self.retried
        return tuple(sorted(int(code) for code in codes))

    @property
    def has_digest(self) -> bool:
        """Whether the image is one for good; a tag may be another one tomorrow."""
        return self.image is not None and "@sha256:" in self.image


def node_command(spec: JobSpec, *, node_rank: str, host: str, job: str = JOB_PATH) -> list[str]:
    """The words that start the launcher of a node, as an argument list; no shell reads them.

    Args:
        spec: The job.
        node_rank: The node's number, or what the target puts it in for.
        host: The first node, as the others reach it.
        job: Where the node finds the job file.
    """
    several = ["--nodes", str(spec.nodes), "--node-rank", node_rank]
    several += ["--rendezvous", f"{host}:{PORT}"]
    options = [
        *(several if spec.nodes.most > 1 else ()),
        *("--workers", str(spec.workers)),
        *("--max-restarts", str(spec.max_restarts)),
    ]
    if isinstance(spec.program, JobFile):
        return ["distrain", "train", job, *options]
    # What begins with a dash, too, is the script's.
    return ["distrain", "launch", *options, "--", spec.program.path, *spec.program.arguments]


def check_name(option: str, name: str, most: int = 63) -> None:
    """Refuses what is no DNS label (RFC 1035), which hosts and services are named by.

    Raises:
        UsageError: it is none, or longer than `most`.
    """
    if len(name) > most or not _NAME.fullmatch(name):
        raise UsageError(
            f"{option} is {quoted(name)}; give at most {most} of a-z, 0-9 and '-', the first a "
            "letter, the last no '-'"
        )


def check_namespace(option: str, name: str) -> None:
    """Refuses what no namespace can be called (DNS-1123 label).

    Raises:
        UsageError: none can.
    """
    if not _LABEL.fullmatch(name):
        raise UsageError(
            f"{option} is {quoted(name)}; give at most 63 of a-z, 0-9 and '-', first and last a "
            "letter or digit"
        )


def check_cluster_name(kind: str, name: str) -> None:
    """Refuses what no object of a cluster can be called (DNS-1123 subdomain).

    Raises:
        UsageError: it is none.
    """
    if len(name) > 253 or not _CLUSTER_NAME.fullmatch(name):
        raise UsageError(
            f"{kind} is called {quoted(name)}; give at most 253 of a-z, 0-9, '-' and '.', first "
            "and last a letter or digit"
        )


def check_text(what: str, text: str) -> None:
    """Refuses what no process can be given: everything else is passed on as it is.

    Raises:
        UsageError: it has a NUL, or half a character.
    """
    if not text.isprintable() and ("\0" in text or any(0xD800 <= ord(c) < 0xE000 for c in text)):
        raise UsageError(f"{what} is {quoted(text)}; no NUL, and text in UTF-8")


def check_no_secret(what: str, found: str | None) -> None:
    """Refuses a text in which a secret was found.

    Args:
        what: The text, for the message, which does not repeat it.
        found: What `launch.secret_literals` says of it.

    Raises:
        UsageError: it says anything.
    """
    if found is not None:
        raise UsageError(
            f"{what} looks like a secret ({found}), and would stand in plain text wherever the job "
            "is kept: keep it in a secret of the cluster, and give --secret VARIABLE=SECRET/KEY or "
            "--secret-files SECRET:PATH; for SLURM export it where you submit"
        )


def is_of_workers(variable: str) -> bool:
    """Whether an environment variable is set by a launcher, for its workers alone."""
    return _OF_WORKERS.fullmatch(variable) is not None


def _is_image(name: str) -> bool:
    """Whether a registry could have an image of this name: up to 255 signs before a digest."""
    return len(name.partition("@")[0]) <= MOST_IN_IMAGE and _IMAGE.fullmatch(name) is not None


def _check_variable(name: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise UsageError(
            f"an environment variable is called {quoted(name)}; letters, digits and '_' alone, "
            "the first no digit"
        )
    if is_of_workers(name):
        raise UsageError(f"the environment variable {name} is set by the launcher; leave it out")


def _check_mount(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or len(parts) < 2 or ".." in parts or ":" in path:
        raise UsageError(
            f"a volume's path is {quoted(path)}; give an absolute one without '..' and ':'"
        )
    check_text("a volume's path", path)


def _table(toml: str) -> dict[str, Any]:
    try:
        return tomllib.loads(toml)
    except tomllib.TOMLDecodeError:  # which says so itself where it is read
        return {}


def _check_unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what} {name} is given twice")


def quoted(text: str) -> str:
    """A text as it was given, for a message; a long one is cut."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
