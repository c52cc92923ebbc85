"""The `distrain` command."""

import argparse
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, NoReturn

from data_pipeline.errors import DataError, StorageError
from distrain import __version__
from distrain.errors import DistrainError, ExitCode, UsageError, exit_code_of
from launch.commands.checkpoint_parser import add_checkpoint, run_checkpoint
from launch.commands.data_parser import add_data, run_data
from launch.commands.launch_parser import add_launch, run_launch
from launch.commands.plan_parser import add_plan, run_plan
from launch.commands.preview_command import run_preview
from launch.commands.replay_command import add_replay, replay
from launch.commands.run_parser import add_resize, add_status, run_resize, run_status
from launch.commands.submit_command import add_submit, submit
from launch.commands.train_parser import add_train, run_train
from launch.failure import HANDED_ON, Cause, TerminatedError, report_of, tell
from launch.kubernetes.jobs_parser import add_jobs, run_jobs
from launch.machines.node_range import STORE_THREAD

_COMMANDS = """\
Data-parallel training in PyTorch: the same bits on any
number of workers.

data sets
  data        make, convert, preview, inspect and verify

training
  plan        say what a job will take here
  train       train as a job file says
  launch      run a script that uses distrain on workers

a run, by its folder
  status      tell how it stands, or how it ended
  resize      have it go on with another number of workers
  replay      do a step of it again, and look at it
  checkpoint  list, verify and export what it has saved

clusters
  submit      run a job on Kubernetes or SLURM
  kubernetes  look at, follow and end jobs there
"""

_ALONE: Mapping[str, Callable[[argparse.Namespace], Cause | None]] = {
    "data": run_data,
    "launch": run_launch,
    "status": run_status,
    "resize": run_resize,
    "checkpoint": run_checkpoint,
    "kubernetes": run_jobs,
}
"""Commands that take what their parser knows."""

_WITH_OVERRIDES: Mapping[str, Callable[[argparse.Namespace, list[str]], Cause | None]] = {
    "plan": run_plan,
    "train": run_train,
}
"""Those that take a job's `--section.field VALUE` as well."""

_WITH_SCRIPT: Mapping[str, Callable[[argparse.Namespace, list[str], list[str]], Cause | None]] = {
    "replay": replay,
    "submit": submit,
}
"""And those to which `-- SCRIPT ARGS`, or `-- ARGS`, may be given."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong and exits with 64, where argparse would exit with 2.

    An option's name is given whole: the begin of one may be meant for a field of the job, and would
    be another option's as soon as there is one more.
    """

    def __init__(self, **options: Any) -> None:
        """As argparse's."""
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As argparse's; what is almost an option of this command is no field of a job either."""
        known, left = super().parse_known_args(args, namespace)
        for word in left:
            name = word.partition("=")[0]
            near = get_close_matches(name, self._option_string_actions, n=1, cutoff=0.75)
            if name.startswith("--") and "." not in name and near:
                self.error(f"unknown option {name}: did you mean {near[0]}?")
        return known, left

    def error(self, message: str) -> NoReturn:
        """Raises what `main` shows."""
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with a code of `distrain.errors.ExitCode`."""
    _open_streams()
    try:
        cause = _run(sys.argv[1:] if arguments is None else list(arguments))
    except (DistrainError, DataError, StorageError) as error:
        cause = Cause(0, exit_code_of(error), str(error))
    except (KeyboardInterrupt, TerminatedError) as error:
        report = report_of(error, 0, 0)
        cause = Cause(0, report.exit_code, report.text)
    except BrokenPipeError:  # `| head` has read enough of what a command shows
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        cause = None
    except Exception as error:  # noqa: BLE001 - shown whole, being a fault of ours
        cause = _no_path(error) or Cause(0, ExitCode.FAULT, traceback.format_exc().rstrip())
    if cause is None:
        sys.exit(ExitCode.DONE)
    rank = f" (rank {cause.rank})" if cause.rank else ""
    tell(f"distrain{rank}: {cause.text}\n", sys.stderr)
    sys.exit(cause.exit_code)


def _open_streams() -> None:
    """Has standard streams that were closed lead nowhere, and no other file take their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere == number:
                os.set_inheritable(number, True)  # for the workers as well
            else:
                os.dup2(nowhere, number)
                os.close(nowhere)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115, PTH123


def _no_path(error: Exception) -> Cause | None:
    """The cause where a path that the user has named can't even be looked at."""
    if not isinstance(error, OSError):
        return None
    if error.filename is None:  # as of os.getcwd
        gone = "the folder that this was started in is gone: change to another"
        return Cause(0, ExitCode.USAGE, gone) if error.errno == errno.ENOENT else None
    if error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP):
        return Cause(0, ExitCode.USAGE, f"{error.filename}: {error.strerror}")
    return None


def command() -> NoReturn:
    """What the shell's `distrain` is: `main` in a process that is its own.

    It ends at once where a thread may still wait for a dead link in torch's store: Python would end
    that thread within torch's code, and the process with SIGABRT for it.
    """
    try:
        main()
    except SystemExit as ended:
        for number in HANDED_ON:
            signal.signal(number, signal.SIG_IGN)  # all is told: the rest is Python's own end
        if all(thread.name != STORE_THREAD for thread in threading.enumerate()):
            raise
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(ended.code if isinstance(ended.code, int) else ExitCode.DONE)


def _run(arguments: list[str]) -> Cause | None:
    parser = command_line()
    if not arguments:
        raise UsageError(f"give a command\n\n{parser.format_help().rstrip()}")
    called = arguments[0]
    if called in _WITH_SCRIPT:
        before, script = _cut(arguments)
        known, overrides = parser.parse_known_args(before)
        return _WITH_SCRIPT[called](known, overrides, script)
    if called in _WITH_OVERRIDES:
        return _WITH_OVERRIDES[called](*parser.parse_known_args(arguments))
    if arguments[:2] == ["data", "preview"]:
        run_preview(*parser.parse_known_args(arguments))
        return None
    known = parser.parse_args(arguments)
    return _ALONE[known.command](known)


def _cut(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What is the command's own, and what stands behind --, which is a script's."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:at], arguments[at + 1 :]


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="distrain",
        usage="distrain [-h] [--version] COMMAND ...",
        description=_COMMANDS,
        epilog="distrain COMMAND --help says what a command takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"distrain {__version__}")
    # Each command stands in the description, by what it is for; argparse would list them all.
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", prog="distrain", help=argparse.SUPPRESS
    )
    add_data(commands.add_parser("data"))
    add_plan(commands.add_parser("plan"))
    add_train(commands.add_parser("train", add_help=False))
    add_launch(commands.add_parser("launch"))
    add_status(commands.add_parser("status"))
    add_resize(commands.add_parser("resize"))
    add_replay(commands.add_parser("replay"))
    add_checkpoint(commands.add_parser("checkpoint"))
    add_submit(commands.add_parser("submit"))
    add_jobs(commands.add_parser("kubernetes"))
    return parser


if __name__ == "__main__":
    command()
