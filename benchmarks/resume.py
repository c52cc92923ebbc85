"""Does a run that goes on within an epoch of 10^9 rows start as fast as a fresh one?

Measured is the time from the start (the data set is opened, the model built, `Trainer.fit` called)
to the end of the first training step, for a fresh run and for runs that go on after 1% and after
99% of the first epoch. Every measurement is a process of its own, as every start of a run is; it is
forked from one that has imported everything, so that imports are not in it. The rounds are
interleaved, after one that is not counted; reported are seconds, and by round the ratio to fresh.

The data set has 1,000 shards of 10^6 rows, which are hard links to one file: the manifest, the maps
and the lookups are those of 10^9 rows, and the disk holds 12 MB. A short real run leaves a folder
and a checkpoint; that checkpoint, its step set, is written again by distrain's own writer, and its
`events.jsonl` gets the line of every step that such a run has done. The model is small, so that
reading its weights doesn't hide what the position costs. The file's pages are in memory: what a
disk would take to deliver the first rows is not in it.

    python -m benchmarks.resume [--rounds 7] [--shards 1000] [--rows-per-shard 1000000]
                                [--global-batch 1024] [--no-events] [--out FILE.json]

`--no-events` leaves the lines of the steps out: what a start costs without that log.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.billion_rows import POSITIONS, SHORT_RUN_STEPS, Size, prepare, seconds_to_step
from benchmarks.conditions import conditions, ratios, spread

FRESH = "fresh"


def in_new_process(data: Path, run: Path, global_batch: int) -> float:
    """Seconds to the first step, of a process that has done nothing but its imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.billion_rows"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(seconds_to_step, data, run, global_batch, 1).result()


def measure(folder: Path, size: Size, rounds: int, *, with_events: bool) -> dict[str, list[float]]:
    """Seconds to the first step, by kind of start and round."""
    starts: Mapping[str, Path | None] = {
        FRESH: None,
        **prepare(folder, size, with_events=with_events),
    }
    found: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(rounds + 1):
        for name, template in starts.items():
            run = folder / f"run-{number}-{name}"
            if template is not None:
                shutil.copytree(template, run)
            os.sync()  # what was copied must not be waited for by the run's own syncs
            seconds = in_new_process(folder / "data", run, size.global_batch)
            shutil.rmtree(run)
            if number:  # the first round warms the page cache
                found[name].append(seconds)
    return found


def report(found: Mapping[str, Sequence[float]], size: Size, *, events: bool) -> dict[str, object]:
    return {
        "config": {
            "rows": size.shards * size.rows_per_shard,
            **vars(size),
            "steps_per_epoch": size.steps_per_epoch,
            "lines_of_steps_in_events": events,
            "workers": 1,
            "process_per_measurement": True,
        },
        "seconds_to_first_step": {name: spread(seconds, 4) for name, seconds in found.items()},
        "ratio_to_fresh": {
            name: spread(ratios(found[name], found[FRESH])) for name in found if name != FRESH
        },
        **conditions(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--rows-per-shard", type=int, default=1_000_000)
    parser.add_argument("--global-batch", type=int, default=1_024)
    parser.add_argument("--no-events", dest="events", action="store_false")
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(sys.argv[1:] if argv is None else argv)
    size = Size(known.shards, known.rows_per_shard, known.global_batch)
    if known.rounds < 1 or size.steps_per_epoch * min(POSITIONS.values()) < SHORT_RUN_STEPS:
        parser.error(f"1% of the epoch must be {SHORT_RUN_STEPS} steps or more, in 1 round or more")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), size, known.rounds, with_events=known.events)
    text = json.dumps(report(found, size, events=known.events), indent=2)
    print(text)
    if known.out is not None:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
