"""Programs that work alone, each in a process forked from one that has imported what they need.

A start of Python takes 5 s of a core until the first step of a training, and what a run ends with
has no need of that: here `distrain` or a script runs in a process of its own that is forked from
one with the modules at hand that the workers' fork server has too. Tests of how a command starts,
and of what it is stopped by, start the command itself.
"""

import functools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import main
from tests.conftest import TIMEOUT_S, Completed, clean_environment


def distrain_alone(
    *arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Completed:
    """Runs the command, which must not need other workers; its exit code, and what it has said."""
    return _forked(None, arguments, cwd, environment)


def script_alone(script: Path, *arguments: object) -> Completed:
    """Runs a script, as `python SCRIPT ARGUMENTS...` does."""
    return _forked(script, arguments)


def _forked(
    script: Path | None,
    arguments: Sequence[object],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Completed:
    given = [str(argument) for argument in arguments]
    with tempfile.TemporaryDirectory() as said:
        request = {
            "script": None if script is None else str(script),
            "arguments": given,
            "cwd": str(cwd or Path.cwd()),
            "environment": clean_environment() | dict(environment or {}),
            "said": said,
        }
        code = _answer(json.dumps(request))
        out, err = (Path(said, name).read_text() for name in ("out", "err"))
    return subprocess.CompletedProcess(given, code, out, err)


def _answer(request: str) -> int:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(f"{request}\n")
    server.stdin.flush()
    if not select.select([server.stdout], [], [], TIMEOUT_S)[0]:
        os.killpg(server.pid, signal.SIGKILL)
        _server.cache_clear()
        raise TimeoutError(f"no end within {TIMEOUT_S} s of {request}")
    answer = server.stdout.readline()
    assert answer, f"the process that others are forked from has ended at {request}"
    return int(answer)


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """The process to fork from; it ends with this one, whose end of the pipe is closed then."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.alone"],
        env=clean_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _serve() -> None:
    """Forks for each request, one at a time, and answers with the exit code."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run(**json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(
    script: str | None, arguments: list[str], cwd: str, environment: dict[str, str], said: str
) -> None:
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with Path(said, name).open("w") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if script is None:
        sys.path.insert(0, cwd)  # as `python -m` does
        sys.argv = ["distrain", *arguments]
        main.command()
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    import tyro  # noqa: F401

    import launch.commands.train_command
    import launch.warm  # noqa: F401

    _serve()
