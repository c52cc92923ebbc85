"""Runs whose workers are killed: distrain's and plain torchrun's, of one net on the same data.

Both log each step with its time; what a kill cost is read from there.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks.digits_job import CLIP_NORM, LR, MOMENTUM, PER_WORKER
from data_pipeline.sources.bundled import make_bundled
from distrain.coordinator.log_tail import lines_from_end

OURS, TORCHRUN = "distrain", "torchrun"
EVERY_STEPS = 50
"""Of checkpoints, in both. Ours has a snapshot in memory after each step besides, where the default
is as many as take 2% of the time."""

ROOT = Path(__file__).parent.parent
LIMIT_S = 180.0
STORE_OF_ITS_OWN = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""For torchrun: else a new worker may read the address of a listener of the start before from the
launcher's store, and the run needs 20 to 50 s to come back, or never does (pytorch#135712)."""

_LOOK_EVERY_S = 0.01

_JOB = """\
[data]
path = "{data}"
inputs = "image"
target = "label"

[model]
build = "benchmarks.digits_job:build_net"

[optimizer]
lr = {lr}
momentum = {momentum}

[training]
epochs = 1000000
global_batch = {global_batch}
micro_batch = {micro_batch}
last_batch = "drop"
clip_norm = {clip_norm}

[checkpoint]
every_steps = {every_steps}
snapshot_every = 1
"""


@dataclass(frozen=True)
class Start:
    """A start of the workers, as the log tells of it.

    Attributes:
        began: When.
        resumed: The steps that were done already.
        stepped: When its first step was done; None before.
        step: The newest step; that it was resumed at before the first.
        newest: When that was done.
    """

    began: float
    resumed: int
    stepped: float | None
    step: int
    newest: float


@dataclass(frozen=True)
class Loss:
    """What the loss of a worker has cost.

    Attributes:
        killed: When it was killed.
        before: The steps that were done by then.
        resumed: Those that the next start began with.
        stepped: When that start's first step was done.
    """

    killed: float
    before: int
    resumed: int
    stepped: float

    @property
    def twice(self) -> int:
        """Steps to be done again."""
        return self.before - self.resumed


def newest_start(log: Path) -> Start | None:
    """The newest start; None before the first one's first line."""
    steps: list[dict[str, Any]] = []
    resumed = 0
    for event in _from_end(log):
        match event.get("event"):
            case "step":
                steps.append(event)
            case "resume":
                resumed = event["step"]
            case "begin":
                return Start(
                    began=event["time"],
                    resumed=resumed,
                    stepped=steps[-1]["time"] if steps else None,
                    step=steps[0]["step"] if steps else resumed,
                    newest=steps[0]["time"] if steps else event["time"],
                )
    return None


def _from_end(log: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError), log.open("rb") as file:
        for line, _ in lines_from_end(file):
            with suppress(ValueError):  # the line that is being written
                yield json.loads(line)


class KilledRun:
    """A run under way; a context manager, at whose end it is killed whole."""

    def __init__(self, kind: str, workers: int, kills: int) -> None:
        """Starts `OURS` or `TORCHRUN`, with so many restarts and a few more."""
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        data, run = folder / "digits", folder / "run"
        make_bundled("digits", data)
        restarts = str(kills + 5)
        if kind == OURS:
            job = folder / "job.toml"
            sizes = {"global_batch": PER_WORKER * workers, "micro_batch": PER_WORKER}
            given = {"lr": LR, "momentum": MOMENTUM, "clip_norm": CLIP_NORM, **sizes}
            job.write_text(_JOB.format(data=data, every_steps=EVERY_STEPS, **given))
            command = ["launch.main", "train", str(job), "--run.dir", str(run)]
            command += ["--workers", str(workers), "--max-restarts", restarts]
            command += ["--data.validation", "None", "--early-stopping.monitor", "None"]
        else:
            run.mkdir()
            command = ["torch.distributed.run", "--nproc-per-node", str(workers)]
            command += ["--max-restarts", restarts, "--rdzv-backend", "c10d"]
            command += ["--rdzv-endpoint", "localhost:0", "-m", "benchmarks.torchrun_peer"]
            command += [str(data), str(run), str(EVERY_STEPS)]
        self._is_ours, self._log = kind == OURS, run / "events.jsonl"
        self._said = (folder / "said").open("w+")
        self._launcher = psutil.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                **({} if self._is_ours else STORE_OF_ITS_OWN),
            },
            stdout=subprocess.DEVNULL,
            stderr=self._said,
        )

    def start(self) -> Start | None:
        """The newest start of its workers."""
        return newest_start(self._log)

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that has to come.

        Raises:
            TimeoutError: it did not.
        """
        end = time.monotonic() + LIMIT_S
        while not condition():
            if self._launcher.poll() is not None or time.monotonic() > end:
                said = Path(self._said.name).read_text()
                raise TimeoutError(f"the run has ended or hangs: {said[-2000:]}")
            time.sleep(_LOOK_EVERY_S)

    def is_beyond(self, step: int) -> bool:
        """Whether the newest start has done that step."""
        start = self.start()
        return start is not None and start.stepped is not None and start.step >= step

    def time_of(self, step: int) -> float:
        """When the newest start has done a step that it has done."""
        events = _from_end(self._log)
        return next(
            float(event["time"])
            for event in events
            if event.get("event") == "step" and event["step"] == step
        )

    def lose(self, rank: int) -> Loss:
        """Kills the worker of that rank by SIGKILL, and waits until the run goes on."""
        self.until(lambda: rank in self._workers())
        killed = time.time()
        self._workers()[rank].kill()
        before = 0
        while True:
            start = self.start()
            if start is not None and start.began < killed:
                before = max(before, start.step)  # the log is cut back to where it goes on
            elif start is not None and start.stepped is not None:
                return Loss(killed, before, start.resumed, start.stepped)
            self.until(lambda: self.start() != start)  # noqa: B023 - it is called here

    def _workers(self) -> dict[int, Any]:
        found = {}
        for process in self._launcher.children(recursive=True):
            with suppress(psutil.Error, KeyError, ValueError):
                if self._is_ours:
                    name = process.name()
                    if name.startswith("distrain-r"):
                        found[int(name.removeprefix("distrain-r"))] = process
                elif process.ppid() == self._launcher.pid:
                    found[int(process.environ()["RANK"])] = process
        return found

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kills all its processes, and takes its files away."""
        processes: list[Any] = [self._launcher]
        with suppress(psutil.NoSuchProcess):
            processes += self._launcher.children(recursive=True)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._launcher.wait()
        psutil.wait_procs(processes, timeout=10)
        self._said.close()
        self._folder.cleanup()
