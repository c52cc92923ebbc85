"""What `distrain submit` is told for any target, and the `JobSpec` that comes of it."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distrain.config import Job, default_micro_batch
from distrain.errors import ConfigError, UsageError
from distrain.job_file import job_tables, job_toml, override, read_job, with_folder
from launch.job_spec import MOST_IN_NAME, JobFile, JobSpec, Resources, Script, check_text
from launch.number_range import NumberRange


class Groups(NamedTuple):
    """Headings of the help, for what a target adds below them."""

    machines: "argparse._ArgumentGroup"
    restarts: "argparse._ArgumentGroup"


def add_shared(parser: argparse.ArgumentParser, target: str) -> Groups:
    """Adds the options that every target has."""
    parser.usage = (
        f"distrain submit {target} JOB [OPTION ...]\n"
        "           [--section.field VALUE ...] [-- ARGS ...]"
    )
    parser.epilog = (
        "--section.field VALUE sets any field of a job file (`distrain train JOB --help` lists "
        "them). What stands behind -- is a script's: "
        f"distrain submit {target} SCRIPT -- ARGS."
    )
    parser.add_argument(
        "job", metavar="JOB", help="a job file (.toml), or a script that is there on the nodes"
    )
    parser.add_argument("--name", help="of all that is made for it (JOB's)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be sent, and send nothing"
    )
    machines = parser.add_argument_group("machines")
    add = machines.add_argument
    add("--nodes", default="1", metavar="N|MIN:MAX", help="how many (1)")
    add("--workers", type=int, metavar="N", help="on each (one a GPU, else 1)")
    add("--gpus", type=int, default=0, metavar="N", help="of each (0)")
    add("--cpus", metavar="AMOUNT", help="of each, such as 4 or 500m")
    add("--memory", metavar="AMOUNT", help="of each, such as 16Gi")
    add(
        *("--env", "-e"),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an environment variable of each; may be given again",
    )
    restarts = parser.add_argument_group("restarts, and its end")
    restarts.add_argument(
        "--max-restarts",
        type=int,
        default=10,
        metavar="N",
        help="how often the launchers start all workers again when one is lost (10)",
    )
    return Groups(machines, restarts)


def described(
    known: argparse.Namespace, overrides: Sequence[str], script: Sequence[str], **more: Any
) -> JobSpec:
    """The job's description.

    Args:
        known: What `add_shared` has added.
        overrides: The job file's, `--section.field VALUE`.
        script: What stands behind `--`: a script's own arguments.
        **more: Fields of `JobSpec` that only the target knows of.

    Raises:
        UsageError, ConfigError: it can't be run as described.
    """
    path = Path(known.job)
    workers = max(1, known.gpus) if known.workers is None else known.workers
    nodes = NumberRange.parse("--nodes", known.nodes)
    if path.suffix == ".toml":
        if script:
            raise UsageError(f"{path} is a job file, and {script[0]!r} behind -- is for scripts")
        job = resolved_job(path, overrides)
        check_micro_batches(job, nodes.least * workers, nodes.most * workers)
        program: JobFile | Script = JobFile(toml=job_toml(job_tables(job)).decode())
        more.setdefault("grace_s", job.run.grace_s)
    else:
        if overrides:
            raise UsageError(
                f"unknown option {overrides[0]}; what {path} itself is to be given stands behind --"
            )
        program = Script(path=known.job, arguments=tuple(script))
    return JobSpec(
        name=known.name or name_of(path),
        program=program,
        nodes=nodes,
        workers=workers,
        resources=Resources(cpus=known.cpus, memory=known.memory, gpus=known.gpus),
        environment=environment(known.env),
        max_restarts=known.max_restarts,
        **more,
    )


def resolved_job(path: Path, overrides: Sequence[str]) -> Job:
    """The job of a file, its overrides applied; its data may be elsewhere.

    Raises:
        UsageError, ConfigError: there is none, or it can't be run as described.
    """
    job = read_job(path)
    for text in overrides:
        check_text("what is set of the job", text)
    if overrides:
        job = override(job, overrides, prog=f"distrain submit ... {path}")
    return with_folder(job, path)


def check_micro_batches(job: Job, least: int, most: int) -> None:
    """Refuses more workers than a global batch has micro-batches.

    Raises:
        ConfigError: even the fewest machines have more.
    """
    training = job.training
    micro_batch = training.micro_batch or default_micro_batch(training.global_batch)
    there_are = training.global_batch // micro_batch
    if most > there_are:
        raise ConfigError(
            f"{most if least == most else f'{least} to {most}'} workers, but a global batch of "
            f"{training.global_batch} has only {there_are} micro-batches of {micro_batch}: give "
            "--nodes or --workers less, or lower training.micro_batch"
        )


def name_of(path: Path) -> str:
    """A name for the cluster from a file's: lower case, what stands for a space as a dash."""
    return re.sub(r"[ _.]+", "-", path.stem.lower())[:MOST_IN_NAME].strip("-")


def environment(given: Sequence[str]) -> dict[str, str]:
    """Variables from `NAME=VALUE`.

    Raises:
        UsageError: there is no '=', or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--env is {text!r}; give NAME=VALUE")
        if name in found:
            raise UsageError(f"--env gives {name} twice")
        found[name] = value
    return found
