"""The `distrain` command."""

import argparse
import math
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, get_args

from data_pipeline.errors import DataError, StorageError
from distrain import __version__
from distrain.config import Backend
from distrain.errors import DistrainError, ExitCode, UsageError, exit_code_of
from launch.checkpoint_parser import add_checkpoint, run_checkpoint
from launch.data_parser import add_data, run_data
from launch.failure import Cause, TerminatedError, report_of, tell
from launch.node_range import STORE_THREAD, NodeRange
from launch.number_range import NumberRange
from launch.replay_command import add_replay, replay

_PLAN_USAGE = """\
usage: distrain plan JOB [--workers N] [--seconds S] [--json]
                     [--section.field VALUE ...]

Says what a job is made of, which numbers of workers are worth having, and what it
will take on this machine in time and memory. Nothing is written.

  JOB                    a job file, such as examples/digits.toml
  --workers N            measured with so many; one a GPU, or 1, unless given
  --seconds S            try the job's first steps for about so long (3); with 0
                         nothing is tried
  --json                 one JSON object, for a program
  --section.field VALUE  set any field of the job
"""

_TRAIN_USAGE = """\
usage: distrain train JOB [--workers N|MIN:MAX] [--nodes N|MIN:MAX]
                      [--rendezvous HOST:PORT] [--max-restarts N] [--fresh]
                      [--section.field VALUE ...]

Trains as a TOML job file says, on the workers of this machine, or of several.

  JOB                    a job file, such as examples/digits.toml
  --workers N            how many workers; one a GPU, or 1, unless given
  --workers MIN:MAX      starts MAX; goes on with fewer where one is lost again and
                         again, and with as many as `distrain resize` asks for
  --nodes MIN:MAX        how many machines there may be, with so many workers each;
                         start this same command on all of them
  --rendezvous HOST:PORT where they meet: one of them, and a port that is free there
  --max-restarts N       how often all workers start again when one is lost, from
                         the last checkpoint (10; with one worker 0)
  --fresh                move a run that stands in the run's folder aside
  --section.field VALUE  set any field of the job, such as --optimizer.lr 0.05;
                         `distrain train JOB --help` lists them all
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong and exits with 64, where argparse would exit with 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().rstrip()}")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits with a code of `distrain.errors.ExitCode`."""
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
    except Exception:  # noqa: BLE001 - a fault of ours: shown whole, with the code for it
        cause = Cause(0, ExitCode.FAULT, traceback.format_exc().rstrip())
    if cause is None:
        sys.exit(ExitCode.DONE)
    rank = f" (rank {cause.rank})" if cause.rank else ""
    tell(f"distrain{rank}: {cause.text}\n", sys.stderr)
    sys.exit(cause.exit_code)


def command() -> NoReturn:
    """What the shell's `distrain` is: `main` in a process that is its own.

    It ends at once where a thread may still wait for a dead link in torch's store: Python would end
    that thread within torch's code, and the process with SIGABRT for it.
    """
    try:
        main()
    except SystemExit as ended:
        if all(thread.name != STORE_THREAD for thread in threading.enumerate()):
            raise
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(ended.code if isinstance(ended.code, int) else ExitCode.DONE)


def _run(arguments: list[str]) -> Cause | None:
    parser = _parser()
    if arguments[:1] in (["train"], ["plan"]):
        known, overrides = parser.parse_known_args(arguments)
        return _train(known, overrides) if known.command == "train" else _plan(known, overrides)
    if arguments[:1] == ["replay"]:
        return _replay(parser, arguments)
    if arguments[:2] == ["data", "preview"]:
        from launch import preview_command  # noqa: PLC0415 - for this command alone

        preview_command.run(*parser.parse_known_args(arguments))
        return None
    known = parser.parse_args(arguments)
    if known.command == "launch":
        return _launch(known)
    if known.command == "resize":
        from launch.resizing import resize  # noqa: PLC0415 - for this command alone

        print(resize(known.run, known.workers))
    elif known.command == "status":
        from launch.status_command import show  # noqa: PLC0415 - for this command alone

        show(known.run, as_json=known.json)
    elif known.command == "checkpoint":
        run_checkpoint(known)
    else:
        return run_data(known)
    return None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="distrain",
        description="Data-parallel training in PyTorch: the same bits on any number of workers.",
    )
    parser.add_argument("--version", action="version", version=f"distrain {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_data(commands.add_parser("data", help="make, convert, inspect and verify data sets"))

    train = commands.add_parser("train", help="train as a job file says", add_help=False)
    train.add_argument("job", type=Path, nargs="?")
    train.add_argument("--workers")
    train.add_argument("--nodes")
    train.add_argument("--rendezvous")
    train.add_argument("--max-restarts", type=int)
    train.add_argument("--fresh", action="store_true")
    train.add_argument("-h", "--help", action="store_true")

    plan = commands.add_parser("plan", help="say what a job will take here", add_help=False)
    plan.add_argument("job", type=Path, nargs="?")
    plan.add_argument("--workers")
    plan.add_argument("--seconds", type=float, default=3.0)
    plan.add_argument("--json", action="store_true")
    plan.add_argument("-h", "--help", action="store_true")

    status = commands.add_parser("status", help="tell how a run stands, or how it ended")
    status.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    status.add_argument("--json", action="store_true", help="one JSON object, for a program")

    add_checkpoint(commands.add_parser("checkpoint", help="list, verify and export checkpoints"))
    add_replay(commands.add_parser("replay", help="do a step of a run again, and look at it"))

    resize = commands.add_parser(
        "resize", help="have a run with --workers MIN:MAX go on with another number of workers"
    )
    resize.add_argument("run", type=Path, metavar="RUN", help="the run's folder")
    resize.add_argument("workers", type=int, metavar="N", help="from MIN to MAX")

    launch = commands.add_parser("launch", help="run a script that uses distrain on workers")
    launch.add_argument("--workers", help="workers on this machine (one a GPU, or 1)")
    launch.add_argument(
        "--max-restarts", type=int, help="starts again when a worker is lost (default 0)"
    )
    launch.add_argument(
        "--backend", choices=get_args(Backend), default="torch", help="what the script asks for"
    )
    launch.add_argument("script", type=Path, metavar="SCRIPT")
    launch.add_argument("rest", nargs=argparse.REMAINDER, metavar="ARGS", help="for the script")
    return parser


def _train(known: argparse.Namespace, overrides: list[str]) -> Cause | None:
    from launch import train_command  # noqa: PLC0415 - what `--help` has no need of

    if known.help:
        print(_TRAIN_USAGE)
        if known.job is not None:
            overrides = ["--help"]
        else:
            return None
    if known.job is None:
        raise UsageError(f"train needs a job file\n{_TRAIN_USAGE}")
    if known.rendezvous is not None and known.nodes is None:
        raise UsageError("--rendezvous is for several machines: give --nodes MIN:MAX as well")
    nodes = None if known.nodes is None else NodeRange.parse(known.nodes, known.rendezvous)
    return train_command.train(
        known.job,
        None if known.workers is None else NumberRange.parse("--workers", known.workers),
        overrides,
        fresh=known.fresh,
        max_restarts=_checked_restarts(known.max_restarts),
        nodes=nodes,
    )


def _plan(known: argparse.Namespace, overrides: list[str]) -> Cause | None:
    from launch import plan_command  # noqa: PLC0415 - what `--help` has no need of

    if known.help:
        print(_PLAN_USAGE)
        return None
    if known.job is None:
        raise UsageError(f"plan needs a job file\n{_PLAN_USAGE}")
    if not 0 <= known.seconds < math.inf:
        raise UsageError(f"--seconds is {known.seconds}; give 0 or more")
    return plan_command.plan(
        known.job,
        _fixed_workers(known.workers),
        overrides,
        seconds=known.seconds,
        as_json=known.json,
    )


def _replay(parser: argparse.ArgumentParser, arguments: list[str]) -> Cause | None:
    """What stands behind -- is a script's."""
    script: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, script = arguments[:at], arguments[at + 1 :]
    known, overrides = parser.parse_known_args(arguments)
    return replay(known, overrides, script)


def _fixed_workers(given: str | None) -> NumberRange | None:
    workers = None if given is None else NumberRange.parse("--workers", given)
    if workers is not None and workers.is_elastic:
        raise UsageError(f"--workers is {given}; MIN:MAX is for `distrain train`, give one number")
    return workers


def _checked_restarts(given: int | None) -> int | None:
    if given is not None and given < 0:
        raise UsageError(f"--max-restarts is {given}; give 0 or more")
    return given


def _launch(known: argparse.Namespace) -> Cause | None:
    from launch.local import run_workers  # noqa: PLC0415 - what `--help` has no need of
    from launch.train_command import check_workers  # noqa: PLC0415

    if not known.script.is_file():
        raise UsageError(f"there is no script {known.script}")
    arguments = ["script", str(known.script), *known.rest]
    return run_workers(
        arguments,
        check_workers(_fixed_workers(known.workers)),
        max_restarts=_checked_restarts(known.max_restarts),
        backend=known.backend,
    )


if __name__ == "__main__":
    command()
