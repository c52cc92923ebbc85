"""A run's folder: whose it is, who is using it, and the files that stand for the whole run."""

import fcntl
import json
import os
import shutil
import socket
import time
import tomllib
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError, StorageError
from distrain.coordinator.generation import WORKERS, Generation
from distrain.coordinator.run_layout import (
    ENVIRONMENT,
    EVENTS,
    GENERATION,
    JOB,
    LOCK,
    RESULT,
    RUNNING,
    STATUS,
    TENSORBOARD,
)
from distrain.errors import ConfigError
from distrain.job_file import IDENTITY, job_toml


class RunFolder:
    """The folder of one run, held by rank 0 through a lock that dies with the process."""

    def __init__(self, path: str | Path, identity: Mapping[str, Any], *, fresh: bool) -> None:
        """Makes or takes over the folder, and locks it.

        Args:
            path: The folder.
            identity: What defines the run's result (rule 1).
            fresh: Move a folder that is there aside instead of taking it over.

        Raises:
            StorageError: it can't be written.
            ConfigError: a live run holds it, it is another job's, or it is no run's folder.
        """
        self.path = Path(path)
        self._identity = dict(identity)
        self._generation: Generation | None = None
        self._workers: int | None = None
        self._run_id = ""
        self._open()
        if fresh and (self.path / JOB).exists():
            self._move_aside()
            self._open()
        try:
            self._check_owner()
        except BaseException:
            self.close()
            raise
        try:
            os.ftruncate(self._lock, 0)
            os.write(self._lock, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            self.close()
            raise StorageError(
                f"the run folder {self.path} cannot be written: {error.strerror or error}"
            ) from error

    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (self.path / LOCK).exists():
                self._refuse_strangers()
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(
                f"the run folder {self.path} cannot be written: {error.strerror or error}; "
                "name another with --run.dir"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._lock, 200).decode(errors="replace").strip() or "another process"
            os.close(self._lock)
            raise ConfigError(
                f"the run folder {self.path} is in use by a live run ({holder}): wait for it to "
                "end, or name another folder with --run.dir"
            ) from error

    def _move_aside(self) -> None:
        if self.path.name in ("", ".."):
            self.close()
            raise ConfigError(
                f"the run folder {self.path} cannot be moved aside from within: start in another "
                "folder, and name it from there"
            )
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        try:
            self.path.rename(aside)
        except OSError as error:
            raise StorageError(f"cannot move {self.path} to {aside}: {error.strerror}") from error
        finally:
            self.close()

    def _refuse_strangers(self) -> None:
        """Refuses files without a job; a first start that was killed may leave part of one."""
        if (self.path / JOB).exists():
            return
        names = sorted(item.name for item in self.path.iterdir())
        ours = (LOCK, GENERATION)
        others = [name for name in names if name not in ours and not name.endswith(".partial")]
        if others:
            raise ConfigError(
                f"{self.path} holds {', '.join(others[:3])} and no {JOB}: it is no run's "
                "folder; name another with --run.dir"
            )

    def _check_owner(self) -> None:
        self._refuse_strangers()
        if not (self.path / JOB).exists():
            return
        differing = identity_changes(self.path, self._identity)
        if differing:
            raise ConfigError(
                f"the run folder {self.path} belongs to another job:\n  "
                + "\n  ".join(differing)
                + "\nName another with --run.dir, or start with --fresh, which moves it aside"
            )

    def status(self) -> dict[str, Any]:
        """What `status.json` says; empty where there is none."""
        path = self.path / STATUS
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}; start with --fresh") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path} cannot be read: it is no JSON object; start with --fresh")
        return content

    def environment(self) -> dict[str, Any]:
        """What `environment.json` says; empty where there is none, or it can't be read."""
        try:
            content = json.loads((self.path / ENVIRONMENT).read_bytes())
        except (OSError, ValueError):  # it warns only, and is written anew
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def run_id(self) -> str:
        """The name that the run in this folder was given at its begin; empty before that.

        What is kept elsewhere under it (snapshots) is this run's, and of none that stood here
        before.
        """
        return self._run_id or str(self.status().get("run_id", ""))

    def begin(
        self,
        job: Mapping[str, Any],
        environment: Mapping[str, Any],
        epochs: int,
        steps: int,
        *,
        goes_on: bool,
    ) -> None:
        """Writes what the run is; clears what an earlier start left, unless this one goes on.

        From here on an earlier start that is still alive may not write any more.
        """
        self._run_id = (self.run_id if goes_on else "") or uuid.uuid4().hex
        self._generation = Generation(self.path)
        self._workers = environment["world_size"]
        (self.path / RESULT).unlink(missing_ok=True)
        if not goes_on:
            (self.path / EVENTS).unlink(missing_ok=True)
            shutil.rmtree(self.path / TENSORBOARD, ignore_errors=True)
        write_whole(self.path / JOB, job_toml({**job, IDENTITY: self._identity}))
        self._write_json(ENVIRONMENT, environment)
        self.write_status(RUNNING, epochs=epochs, steps=steps)

    def check_generation(self) -> None:
        """Goes on only where no newer start has taken the run over.

        Raises:
            ConfigError: one has.
        """
        if self._generation is not None:
            self._generation.check()

    def write_status(self, state: str, **fields: Any) -> None:
        """Replaces `status.json`."""
        self.check_generation()
        self._write_json(
            STATUS, {"state": state, "time": round(time.time(), 3), **self._start(), **fields}
        )

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_whole(self.path / name, json.dumps(content, indent=2).encode() + b"\n")

    def _start(self) -> dict[str, Any]:
        """Who writes: `starts` counts how often the run was started, also by its launcher."""
        started = 0 if self._generation is None else self._generation.number
        who = {"pid": os.getpid(), "host": socket.gethostname(), "workers": self._workers}
        who |= {"run_id": self._run_id, "starts": started}
        return {**who, "workers_range": os.environ.get(WORKERS)}

    def write_result(self, model: torch.nn.Module) -> Path:
        """Writes the model's state to `model.safetensors`."""
        self.check_generation()
        write_whole(self.path / RESULT, model_bytes(model))
        return self.path / RESULT

    def close(self) -> None:
        """Gives the folder up."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        """For `with`: the folder is given up at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the folder up."""
        self.close()


def identity_changes(folder: Path, identity: Mapping[str, Any]) -> list[str]:
    """A line for each thing in which the run in a folder is another one than that of `identity`.

    Raises:
        ConfigError: the folder's job.toml can't be read.
    """
    try:
        recorded = dict(tomllib.loads((folder / JOB).read_text())[IDENTITY])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{folder / JOB} cannot be read ({error}), so whose folder it is can't be told: "
            "name another with --run.dir, or start with --fresh, which moves it aside"
        ) from error
    now = tomllib.loads(job_toml({IDENTITY: dict(identity)}).decode())[IDENTITY]
    return [
        f"{name}: {recorded.get(name, 'nothing')} there, {now.get(name, 'nothing')} now"
        for name in sorted(recorded.keys() | now.keys())
        if recorded.get(name) != now.get(name)
    ]


def model_bytes(model: torch.nn.Module) -> bytes:
    """The model's state as safetensors; the same weights give the same bytes.

    A tied tensor is written under each of its names, so that plain
    `model.load_state_dict(safetensors.torch.load_file(path))` works.
    """
    return state_bytes(model.state_dict())


def state_bytes(state: Mapping[str, torch.Tensor]) -> bytes:
    """A module's state as safetensors, as `model_bytes` gives it."""
    alone = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return save_safetensors(alone, metadata={"format": "pt"})


def load_model(model: torch.nn.Module, path: Path) -> None:
    """Sets the model's state from a safetensors file.

    Raises:
        DataError: the file is missing or damaged, or does not fit the model.
    """
    try:
        model.load_state_dict(load_safetensors(path.read_bytes()))
    except Exception as error:
        raise DataError(f"{path} cannot be loaded into the model: {error}") from error
