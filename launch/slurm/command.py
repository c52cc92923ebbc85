"""`distrain submit slurm`: renders the script, and hands it to `sbatch`."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from distrain.errors import ConfigError, LostPeerError, UsageError
from launch.commands.submit_parser import described
from launch.failure import Cause, tell
from launch.job_spec import JobSpec, is_of_workers
from launch.slurm.batch_script import log_of, render
from launch.slurm.options import SlurmOptions

COMMAND = ("sbatch", "--parsable")
"""It reads the script from its standard input."""

_LEFT_OUT = ("NO_REQUEUE", "ERROR", "NO_KILL", "WAIT", "GET_USER_ENV", "ARRAY_INX")
"""Settings of `SBATCH_...` variables that the script needs as they are without."""

_NAMED_OTHERWISE = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE", "array": "ARRAY_INX"}
"""Of settings of `sbatch`, the variables that aren't called as they are."""

_UNREACHABLE = re.compile(r"[Uu]nable to contact|timed out|Connection refused|try again")


def run(known: argparse.Namespace, overrides: Sequence[str], script: Sequence[str]) -> Cause | None:
    """Prints what would be sent, or sends it and prints how to follow it.

    Raises:
        UsageError, ConfigError: the job can't be run so, or SLURM has refused it.
        LostPeerError: SLURM does not answer.
    """
    given = {each.name: getattr(known, each.name) for each in fields(SlurmOptions)}
    given |= {name: tuple(given[name]) for name in ("sbatch", "srun")}
    given["setup"] = None if known.setup is None else _read(known.setup)
    options = SlurmOptions(**given)
    spec = described(known, overrides, script, node_retries=known.node_retries)
    text = render(spec, options)
    log = log_of(spec, options)
    _check_folder(Path(log).parent, Path.cwd())
    if options.seeds is not None and "%" not in log and log != os.devnull:
        tell(f"distrain: --output {log} is one file for all seeds: put %a in it\n", sys.stderr)
    if known.dry_run:
        tell(f"distrain: would be the input of: {shlex.join(COMMAND)}\n", sys.stderr)
        sys.stdout.write(text)
        return None
    print(_told(spec, send(text, os.environ), log))
    return None


def send(script: str, environment: Mapping[str, str]) -> str:
    """Submits a script; the job's number.

    Raises:
        UsageError: there is no `sbatch`.
        ConfigError: it has refused the job.
        LostPeerError: SLURM does not answer.
    """
    try:
        done = subprocess.run(
            COMMAND,
            input=script.encode(),
            env=job_environment(environment, script),
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise UsageError(
            "there is no sbatch on this machine: submit from one that has SLURM, such as the "
            "cluster's login node; --dry-run prints what would be sent"
        ) from error
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode:
        text = said.replace("sbatch: error: ", "") or f"exit code {done.returncode}"
        if _UNREACHABLE.search(said):
            raise LostPeerError(f"SLURM does not answer, nothing is submitted: {text}")
        raise ConfigError(f"SLURM has refused the job: {text}")
    if said:
        tell(f"{said}\n", sys.stderr)
    return done.stdout.decode().strip().partition(";")[0]


def job_environment(environment: Mapping[str, str], script: str) -> dict[str, str]:
    """What `sbatch` hands on to the job: this process's, without what belongs to another job.

    Where this is run within a job of SLURM's, its variables would be taken for wishes. `sbatch`
    also puts a variable `SBATCH_...` above the line of a script that says the same.
    """
    left_out = {*_LEFT_OUT, *_variables_of(script)}
    is_within = "SLURM_JOB_ID" in environment
    return {
        name: value
        for name, value in environment.items()
        if not is_of_workers(name)
        and not (is_within and name.startswith("SLURM_") and name != "SLURM_CONF")
        and not (name.startswith("SBATCH_") and name.removeprefix("SBATCH_") in left_out)
    }


def _variables_of(script: str) -> Iterator[str]:
    for line in script.split("\n")[1:]:
        if not line.startswith("#SBATCH --"):
            return
        setting = line.removeprefix("#SBATCH --").partition("=")[0]
        yield _NAMED_OTHERWISE.get(setting, setting.upper().replace("-", "_"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--setup {path}: {getattr(error, 'strerror', None) or error}") from error


def _check_folder(folder: Path, working: Path) -> None:
    if not folder.is_absolute() and set("%\\") & set(str(working)):
        raise UsageError(
            f"--output: the log would be in the working directory, {str(working)!r}, whose % and "
            "\\ mean something else to SLURM, and it would be lost: give an absolute path"
        )
    if "%" not in str(folder) and not folder.is_dir():
        raise UsageError(
            f"--output: there is no folder {folder}, and SLURM would end the job without a word: "
            "make it first"
        )


def _told(spec: JobSpec, number: str, log: str) -> str:
    log = (
        log.replace("%j", number).replace("%A", number).replace("%a", "*").replace("%x", spec.name)
    )
    return "\n".join(
        (
            f"{spec.name} is submitted as job {number}",
            f"  its state        squeue --job {number}",
            f"  what it says     tail -F {log}",
            f"  save, requeue    scancel --signal=USR1 {number}",
            f"  save, end        scancel {number}",
        )
    )
