"""Does a worker train faster where it is kept on cores of its own?

The small CNN of `step_overhead`, trained by the same workers in turn: free to run on every core,
and with all threads of each worker (compute, loader, gloo) kept on its share of them, as a launcher
that gives each its cores would have it. Rounds take turns at which is first.

    python -m benchmarks.affinity [--workers 2] [--rounds 15] [--epochs 30] [--out FILE.json]
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from benchmarks.conditions import conditions, ratios, spread
from benchmarks.step_overhead import by_distrain
from data_pipeline.dataset import Dataset
from data_pipeline.sources.bundled import make_bundled
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from launch.local import run_workers

FREE, PINNED = "free", "pinned"


def share(cores: Sequence[int], rank: int, workers: int) -> set[int]:
    """A worker's cores: consecutive ones, none left over; several workers on one where need be."""
    if len(cores) < workers:
        return {cores[rank % len(cores)]}
    return set(cores[rank * len(cores) // workers : (rank + 1) * len(cores) // workers])


def keep_on(cores: set[int]) -> None:
    """Keeps all threads of this process, and so those that they start, on these cores."""
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - names are all that is needed
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def measure(data: Dataset, rounds: int, epochs: int) -> dict[str, list[float]]:
    """Samples a second by round, on rank 0's clock."""
    world = worlds.join()
    every = sorted(os.sched_getaffinity(0))
    cores = {FREE: set(every), PINNED: share(every, world.rank, world.size)}
    prepare = by_distrain(data, world.size)
    prepare(1)()  # the first is slower
    found: dict[str, list[float]] = {FREE: [], PINNED: []}
    for number in range(rounds):
        for name in (FREE, PINNED) if number % 2 else (PINNED, FREE):
            fix_kernels(1, deterministic=False)
            train = prepare(epochs)
            keep_on(cores[name])
            gc.collect()
            world.communicator.all_gather(torch.zeros(1))
            began = time.perf_counter()
            samples = train().samples
            world.communicator.all_gather(torch.zeros(1))
            found[name].append(samples / (time.perf_counter() - began))
            keep_on(cores[FREE])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if argv is None else argv)
    known = parser.parse_args(given)
    if known.workers < 2 or known.rounds < 1 or known.epochs < 1:
        parser.error("at least 2 workers, 1 round and 1 epoch are needed")
    if known.data is None:
        start_workers(given, known.workers)
        return
    found = measure(Dataset(known.data), known.rounds, known.epochs)
    if worlds.join().rank == 0:
        result = {
            "config": {
                "workers": known.workers,
                "rounds": known.rounds,
                "epochs_per_round": known.epochs,
            },
            "samples_per_s": {name: round(statistics.median(s)) for name, s in found.items()},
            "pinned_to_free": spread(ratios(found[PINNED], found[FREE])),
            **conditions(),
        }
        text = json.dumps(result, indent=2)
        print(text)
        if known.out is not None:
            known.out.write_text(text + "\n")


def start_workers(given: Sequence[str], workers: int) -> None:
    """Runs this file on every worker."""
    root = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "digits"
        make_bundled("digits", data)
        cause = run_workers(["script", __file__, *given, "--data", str(data)], workers)
    if cause is not None:
        sys.exit(cause.text)


if __name__ == "__main__":
    main()
