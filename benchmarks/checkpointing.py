"""What a save costs the training loop, beside torch.save and DCP's async_save; and bytes written.

An MLP of so many parameters with AdamW, trained in one process, saved every few steps to one disk:

    distrain           Trainer.fit with a run folder and checkpoint.every_steps
    torch_save         torch.save of model and optimizer to a file, with fsync and rename
    dcp_async          torch.distributed.checkpoint.async_save to a folder, as documented
    dcp_async_kept     the same with a stager that is kept, so that its memory is used again

All are timed alike, from the begin of one forward pass to that of the next. The stall of a save is
by how much the step that it follows is longer than the median step of the same loop without saves;
`whole` is what all steps took longer, by save: what a writer in the background costs besides. The
first save of a loop, in which memory is made, is not counted. Rounds are interleaved.

Then distrain trains on several workers, and what they write for a save is counted by the kernel
(`wchar` of /proc/self/io: with saves, less without), over all of them.

    python -m benchmarks.checkpointing [--parameters 50000000] [--rounds 5] [--saves 3] [--every 6]
        [--folder DIR] [--workers 1,2,4] [--out FILE.json]
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save

import distrain
from benchmarks.conditions import conditions, ratios, spread
from data_pipeline import Dataset
from distrain.coordinator.checkpoint_verification import damages
from distrain.coordinator.folder_store import FolderStore
from distrain.coordinator.run_layout import CHECKPOINTS, folder_name, steps_in
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from launch.local import run_workers

FEATURES, CLASSES, DEPTH = 32, 10, 4
MICRO_BATCH, MICRO_BATCHES = 2, 4
BATCH = MICRO_BATCH * MICRO_BATCHES
FLOATS_A_PARAMETER = 3
"""The weight, and AdamW's two moments."""


def build_net(num_parameters: int) -> nn.Module:
    """An MLP with hidden layers of one width, of about so many parameters."""
    width = 8 * max(1, round((num_parameters / DEPTH) ** 0.5 / 8))
    torch.manual_seed(0)
    hidden = [layer for _ in range(DEPTH) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), *hidden, nn.Linear(width, CLASSES))


Save = Callable[[nn.Module, torch.optim.Optimizer, Path], None]


class Case:
    """What is trained, and when it is saved; a loop's steps are timed at their begins."""

    def __init__(self, num_parameters: int, saves: int, every: int) -> None:
        """Saves after steps `every`, `2 * every`, ...; the data are drawn here."""
        self.num_parameters, self.saves, self.every = num_parameters, saves, every
        # None after the last step, whose end nobody times.
        self.num_steps = saves * every + every - 1
        rows = np.random.default_rng(0).normal(size=(self.num_steps * BATCH, FEATURES))
        self.x = rows.astype(np.float32)
        self.y = np.arange(len(rows)) % CLASSES
        self.begins: list[float] = []

    def is_saved(self, step: int) -> bool:
        """Whether the state after this step is written."""
        return step % self.every == 0

    def durations(self) -> dict[int, float]:
        """Seconds of each step, by the number of steps done; without the first, which warms up."""
        assert len(self.begins) == self.num_steps
        pairs = zip(self.begins[1:], self.begins[2:], strict=False)
        return {step: later - earlier for step, (earlier, later) in enumerate(pairs, start=2)}

    def by_distrain(self, folder: Path | None, *, saves: bool) -> None:
        """Trains in a run folder, or in none; each micro-batch 0 is a step's begin."""
        self.begins, begun = [], 0

        def step(model: nn.Module, columns: Columns) -> MicroBatchResult:
            nonlocal begun
            if begun % MICRO_BATCHES == 0:
                self.begins.append(time.perf_counter())
            begun += 1
            outputs = model(columns["x"])
            loss = nn.functional.cross_entropy(outputs, columns["y"], reduction="sum")
            return loss, float(len(outputs)), outputs

        policy = distrain.Checkpoint(every_steps=self.every, every_seconds=None, keep_last=2)
        trainer = distrain.Trainer(
            model=lambda: build_net(self.num_parameters),
            loss=nn.CrossEntropyLoss(),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, fused=True),
            inputs="x",
            target="y",
            standardize=False,
            micro_batch_step=step,
            run=folder,
            checkpoint=policy if saves else None,
            check_every=None,
            deterministic=False,
            progress=False,
        )
        data = Dataset.from_arrays({"x": self.x, "y": self.y})
        trainer.fit(data, epochs=1, global_batch=BATCH, micro_batch=MICRO_BATCH, verify=False)

    def by_torch(self, folder: Path, save: Save | None) -> None:
        """Trains in a plain loop, saving to `folder`, which need not exist yet."""
        self.begins = []
        model = build_net(self.num_parameters)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
        x, y = torch.from_numpy(self.x), torch.from_numpy(self.y)
        for step in range(1, self.num_steps + 1):
            self.begins.append(time.perf_counter())
            start = (step - 1) * BATCH
            for at in range(start, start + BATCH, MICRO_BATCH):
                rows = slice(at, at + MICRO_BATCH)
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="sum") / BATCH
                loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if save is not None and self.is_saved(step):
                save(model, optimizer, folder / folder_name(step))


def torch_save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    folder.mkdir(parents=True)
    aside = folder / ".state.pt.partial"
    with aside.open("wb") as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / "state.pt")


class AsyncDcp:
    """async_save, one at a time: the one before has to have ended."""

    def __init__(self, *, keep: bool) -> None:
        """`keep`: with one stager for all saves. It has no pinned memory: this is for CPUs."""
        plain = StagingOptions(
            use_pinned_memory=False,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=False,
        )
        self._stager = DefaultStager(plain) if keep else None
        self._pending: Future[Any] | None = None

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
        """Saves to a folder that is not there yet."""
        self.wait()
        weights, state = get_state_dict(model, optimizer)
        saving = async_save(
            {"model": weights, "optimizer": state},
            checkpoint_id=folder,
            async_stager=self._stager,
        )
        assert isinstance(saving, Future)
        self._pending = saving

    def wait(self) -> None:
        """Until what is under way is written."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def close(self) -> None:
        """The same, and gives the memory back."""
        self.wait()
        if self._stager is not None:
            self._stager.close()


def measure(case: Case, rounds: int, root: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Seconds by save, loop and round: the stall and the whole; and bytes on disk of a save."""
    stalls: dict[str, list[float]] = {}
    wholes: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    steps_s: dict[str, list[float]] = {"distrain": [], "torch": []}
    for _ in range(rounds):
        base: dict[str, float] = {}
        for loop, medians in steps_s.items():
            run_loop(case, loop, root, saves=False)
            base[loop] = statistics.median(case.durations().values())
            medians.append(base[loop])
        for name in ("distrain", *SAVES):
            folder = run_loop(case, name, root, saves=True)
            plain = base["distrain" if name == "distrain" else "torch"]
            longer = {
                step: seconds - plain
                for step, seconds in case.durations().items()
                if step >= 2 * case.every
            }
            saved = [seconds for step, seconds in longer.items() if case.is_saved(step)]
            assert len(saved) == case.saves - 1
            stalls.setdefault(name, []).append(statistics.median(saved))
            wholes.setdefault(name, []).append(sum(longer.values()) / len(saved))
            sizes[name] = checked_size(folder, case)
            shutil.rmtree(root)
            root.mkdir()
    return {"stall_s": stalls, "whole_s": wholes, "step_s": steps_s}, sizes


SAVES: dict[str, Callable[[], Save]] = {
    "torch_save": lambda: torch_save,
    "dcp_async": lambda: AsyncDcp(keep=False),
    "dcp_async_kept": lambda: AsyncDcp(keep=True),
}


def run_loop(case: Case, name: str, root: Path, *, saves: bool) -> Path:
    """One loop with saves or without; the folder of its last save, were it so."""
    gc.collect()
    if name == "distrain":
        case.by_distrain(root / "run", saves=saves)
        if not saves:
            shutil.rmtree(root / "run")
        checkpoints = root / "run" / CHECKPOINTS
    else:
        checkpoints = root / name
        save = SAVES[name]() if saves else None
        store = (root / f"store-{name}").resolve().as_uri()
        dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
        try:
            case.by_torch(checkpoints, save)
            if isinstance(save, AsyncDcp):
                save.close()
        finally:
            dist.destroy_process_group()
    return checkpoints / folder_name(case.saves * case.every)


def checked_size(folder: Path, case: Case) -> int:
    """Bytes of a save, which must hold weights and moments; distrain's must verify."""
    if folder.parent.name == CHECKPOINTS:
        step = steps_in(folder.parent)[-1]
        assert folder.name == folder_name(step)
        assert damages(FolderStore(folder.parent), step) == []
    size = sum(path.stat().st_size for path in folder.rglob("*"))
    needed = FLOATS_A_PARAMETER * 4 * count_of(case.num_parameters)
    assert needed <= size < 1.2 * needed + 100_000, f"{folder}: {size:,} bytes of {needed:,}"
    return size


def count_of(num_parameters: int) -> int:
    return sum(parameter.numel() for parameter in build_net(num_parameters).parameters())


def written_bytes() -> int:
    """What this process has written so far, by all its threads and the children that have ended."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar:"))


def count_bytes(case: Case, root: Path, out: Path) -> None:
    """On every worker of a group: bytes written for a save by all of them, on rank 0 to `out`."""
    fix_kernels(1, deterministic=False)
    world = worlds.join()
    totals = []
    for saves in (True, False):
        before = written_bytes()
        case.by_distrain(root / f"run-{saves}", saves=saves)
        mine = torch.tensor([written_bytes() - before], dtype=torch.int64)
        totals.append(world.communicator.all_gather(mine).flatten().tolist())
    if world.rank == 0:
        by_worker = [(with_ - without) / case.saves for with_, without in zip(*totals, strict=True)]
        checkpoints = root / "run-True" / CHECKPOINTS
        size = checked_size(checkpoints / folder_name(case.saves * case.every), case)
        found = {
            "written_by_all": round(sum(by_worker)),
            "written_by_the_busiest": round(max(by_worker)),
            "on_disk": size,
            "written_to_on_disk": round(sum(by_worker) / size, 3),
        }
        out.write_text(json.dumps(found))


def bytes_by_workers(given: Sequence[str], sizes: Sequence[int], root: Path) -> dict[str, Any]:
    home = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [home, os.getenv("PYTHONPATH")]))
    found: dict[str, Any] = {}
    for size in sizes:
        folder = root / f"workers-{size}"
        folder.mkdir()
        arguments = ["script", __file__, *given, "--in-worker", str(folder)]
        cause = run_workers(arguments, size)
        if cause is not None:
            sys.exit(cause.text)
        found[str(size)] = json.loads((folder / "bytes.json").read_bytes())
        shutil.rmtree(folder)
    return found


def report(case: Case, seconds: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    stalls, wholes = seconds["stall_s"], seconds["whole_s"]
    peers = [name for name in stalls if name != "distrain"]
    return {
        "stall_s": {name: spread(values, 4) for name, values in stalls.items()},
        "whole_s": {name: spread(values, 4) for name, values in wholes.items()},
        "step_without_saves_s": {n: spread(values, 4) for n, values in seconds["step_s"].items()},
        "stall_of_distrain_as_a_ratio_to": {
            name: spread(ratios(stalls["distrain"], stalls[name])) for name in peers
        },
        "whole_of_distrain_as_a_ratio_to": {
            name: spread(ratios(wholes["distrain"], wholes[name])) for name in peers
        },
        "bytes_on_disk": sizes,
        "config": {
            "parameters": count_of(case.num_parameters),
            "optimizer": "AdamW, fused",
            "saves_a_round": case.saves,
            "steps_between": case.every,
            "batch": BATCH,
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parameters", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--saves", type=int, default=3, help="saves in a round of each")
    parser.add_argument("--every", type=int, default=6, help="steps from one save to the next")
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    parser.add_argument("--workers", default="1,2,4", help="numbers of workers to count bytes for")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--in-worker", type=Path, help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if argv is None else argv)
    known = parser.parse_args(given)
    if known.rounds < 1 or min(known.saves, known.every) < 2:
        parser.error("at least 1 round, 2 saves and 2 steps from one to the next are needed")
    case = Case(known.parameters, known.saves, known.every)
    if known.in_worker is not None:
        count_bytes(case, known.in_worker, known.in_worker / "bytes.json")
        return
    workers = [int(size) for size in known.workers.split(",") if size]
    with tempfile.TemporaryDirectory(prefix="checkpointing-", dir=known.folder) as made:
        root = Path(made)
        counted = bytes_by_workers(given, workers, root)
        fix_kernels(1, deterministic=False)
        rounds = root / "rounds"
        rounds.mkdir()
        found = report(case, *measure(case, known.rounds, rounds))
    text = json.dumps(found | {"bytes_of_a_save_by_workers": counted} | conditions(), indent=2)
    print(text)
    if known.out is not None:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
