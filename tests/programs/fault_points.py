"""A small model, and the points of a run where faults are planted in it, each once.

For `model.build = "fault_points:build"`. FAULT_POINTS names a folder with `plants.json`, a list of

    {"point": name, "rank": number or null, "call": n, "delay_s": seconds, "action": name}

They are due one after the other: in the worker of that rank (null: in whichever comes first) at the
n-th call of the point since the process has begun, and so much later. What was done leaves a file
`done-NUMBER` there. The same folder takes `rows-PID.jsonl`: for each step that this worker begins,
the rows of the data that it was given, and the mark of the start that all its workers share.

The number in `hold`, where that is there, is of a step that is not begun before it is gone.

    FAULT_STEP_S            how long a training step lasts at least
"""

import ctypes
import inspect
import json
import os
import random
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipeline.batches import BatchBuilder
from data_pipeline.recipe import Recipe
from distrain.coordinator import snapshot
from distrain.parallel.communicator import TorchCommunicator
from distrain.parallel.split import GlobalBatch
from distrain.parallel.world import World
from distrain.reading import Reading
from distrain.step import StepResult, TrainingStep
from distrain.update import WeightUpdate

FOLDER = Path(os.environ["FAULT_POINTS"])
RANK = int(os.environ.get("HOROVOD_RANK") or os.environ.get("RANK", "0"))
STEP_S = float(os.environ.get("FAULT_STEP_S", "0"))
WIDTH = 256
"""So that each of four workers has a share of a sharded optimizer's state."""


class Plants:
    """What is to happen in this process: the first plant that has not been done yet."""

    def __init__(self, folder: Path) -> None:
        path = folder / "plants.json"
        plants = json.loads(path.read_text()) if path.exists() else []
        self._calls: dict[str, int] = {}
        self._due: dict[str, Any] = {}
        for number, plant in enumerate(plants):
            self._done = folder / f"done-{number}"
            if not self._done.exists():
                self._due = plant if plant["rank"] in (RANK, None) else {}
                break

    def awaits(self, point: str) -> bool:
        """Whether something is to happen at the point."""
        return bool(self._due.get("point") == point)

    def reached(self, point: str) -> None:
        """Does what is due at this call of the point."""
        if not self.awaits(point):
            return
        self._calls[point] = self._calls.get(point, 0) + 1
        if self._calls[point] != self._due["call"]:
            return
        if self._due["delay_s"]:
            threading.Timer(self._due["delay_s"], self._act).start()
        else:
            self._act()

    def _act(self) -> None:
        action = self._due["action"]
        if action == "kill":
            self._note("")
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "stop":
            self._note("")
            os.kill(os.getpid(), signal.SIGSTOP)
        if action == "clock":
            offset_s = ctypes.c_long.in_dll(ctypes.CDLL(None), "wall_clock_offset_s")
            offset_s.value = self._due["clock_s"]
            probe = FOLDER / f"clock-{RANK}"
            probe.touch()
            self._note(f"{time.time() - probe.stat().st_mtime:.0f}")

    def _note(self, text: str) -> None:
        """Leaves word; of two ranks that get here together one acts."""
        try:
            with self._done.open("x") as file:
                file.write(text)
        except FileExistsError:
            threading.Event().wait()


PLANTS = Plants(FOLDER)


def before(owner: Any, name: str, point: str) -> None:
    """Has each call of a method reach a point first."""
    original = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        PLANTS.reached(point)
        return original(*arguments, **named)

    setattr(owner, name, called)


def watch_files(event: str, arguments: tuple[Any, ...]) -> None:
    """Python tells of files that are opened, renamed and removed before that is done."""
    if event == "open" and not isinstance(arguments[0], int):
        path, flags = os.fsdecode(arguments[0]), arguments[2]
        if "/checkpoints/" in path and flags & os.O_ACCMODE != os.O_RDONLY:
            PLANTS.reached("checkpoint write")
        elif path.endswith("/checkpoints"):
            PLANTS.reached("checkpoint folder sync")
    if event == "os.rename":
        target = Path(os.fsdecode(arguments[1]))
        if target.parent.name == "checkpoints" and target.name.startswith("step-"):
            PLANTS.reached("checkpoint rename")
        if target.name == "model.safetensors" and target.parent.name == "run":
            PLANTS.reached("result rename")
    if event == "os.remove" and "/checkpoints/" in os.fsdecode(arguments[0]):
        PLANTS.reached("checkpoint removal")


class Rows:
    """Leaves word of the rows of each step that this worker begins."""

    def __init__(self) -> None:
        self._file = (FOLDER / f"rows-{os.getpid()}.jsonl").open("a")
        self._start = 0

    def begin(self, world: World) -> None:
        """All workers of a start get one mark."""
        start = torch.tensor([secrets.randbits(62)], device=world.device)
        world.communicator.broadcast(start)
        self._start = int(start.item())

    def used(self, step: int, rows: list[int]) -> None:
        line = {"start": self._start, "time": time.monotonic_ns(), "step": step, "rows": rows}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def wait_where_held(step: int) -> None:
    """The run must not end before the test has done to it what it is about to do."""
    hold = FOLDER / "hold"
    while True:
        try:
            first_held = int(hold.read_text())
        except FileNotFoundError:
            return
        if step < first_held:
            return
        time.sleep(0.002)


def trace_rows() -> None:
    """Has the data's column `row` come with each batch, and each step note it."""
    rows = Rows()
    recipe, begin, step = Reading.recipe, TrainingStep.__init__, TrainingStep.__call__
    signature = inspect.signature(begin)

    def with_row(*arguments: Any, **named: Any) -> Recipe:
        found = recipe(*arguments, **named)
        return replace(found, columns=(*found.columns, "row"))

    def begins(*arguments: Any, **named: Any) -> None:
        begin(*arguments, **named)
        rows.begin(signature.bind(*arguments, **named).arguments["world"])

    def traced(
        self: TrainingStep, batch: GlobalBatch, columns: Any, *arguments: Any, **named: Any
    ) -> StepResult:
        wait_where_held(batch.step)
        rows.used(batch.step, columns["row"].tolist())
        time.sleep(STEP_S)
        return step(self, batch, columns, *arguments, **named)

    replaced: dict[tuple[Any, str], Callable[..., Any]] = {
        (Reading, "recipe"): with_row,
        (TrainingStep, "__init__"): begins,
        (TrainingStep, "__call__"): traced,
    }
    for (owner, name), function in replaced.items():
        setattr(owner, name, function)


def in_a_copy(copy: Callable[..., None]) -> Callable[..., None]:
    """Has each copy of a group of tensors reach a point when all but half a tensor is done."""

    def halved(tensors: Mapping[str, torch.Tensor], to: Mapping[str, torch.Tensor]) -> None:
        if PLANTS.awaits("copy") and tensors:
            some = to[next(iter(tensors))].view(-1)
            some[: len(some) // 2].fill_(-1)
            PLANTS.reached("copy")
        copy(tensors, to)

    return halved


class Points(nn.Module):
    """Passes its input on; its passes are points."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        PLANTS.reached("forward" if self.training else "evaluation")
        if self.training and x.requires_grad:
            x.register_hook(lambda _: PLANTS.reached("backward"))  # type: ignore[no-untyped-call]
        return x


def build(num_outputs: int) -> nn.Module:
    PLANTS.reached("building")
    random.seed(os.getpid())  # what a program may do: no number of the run depends on it
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, WIDTH),
        nn.BatchNorm1d(WIDTH),
        Points(),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(WIDTH, num_outputs),
    )


before(BatchBuilder, "build", "loading")
before(TorchCommunicator, "exchange", "sum")
before(WeightUpdate, "move", "update")
snapshot.copy_group = in_a_copy(snapshot.copy_group)
sys.addaudithook(watch_files)
trace_rows()
