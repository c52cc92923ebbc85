"""How fast do batches come, beside other loaders, and in how much memory?

    A1  50,000 images of 3x32x32, uint8, to standardised float32, 256 a batch
    A2  the same, each moved by up to 4 pixels and flipped
    B   3,000 JPEGs of 320x240, each a random crop resized to 160x160 and flipped, 64 a batch

All shuffled; who takes part, with how many workers or threads, is in `loading.contestants`. Each
measurement is a process of its own; the rounds are interleaved, each beginning with another
contestant. A first run, that is not measured, converts the data and checks that the batches are
those of the task. Reported are samples/s, by round the ratio of distrain to each, and the peak
memory of the process and its children: `rss` counts what they share for each of them, `anon` is
what is not backed by files.

    python -m benchmarks.data_loading [--tasks A1,A2,B] [--contestants ffcv,grain] [--rounds 5]
                                      [--seconds 3] [--tries 1] [--tune] [--samples 1000]
                                      [--cache DIR] [--out FILE.json]

What the peers need is in README.md; one that is not there is left out, and said. `--tune` tries
0, 1, 2, 3 and 4 workers or threads first and takes the best for each, which the table in
`loading.contestants` has for 2 cores. With `--tries`, what was measured while other processes took
more than a tenth of a core is measured again, so often at most; how much they took is recorded.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.conditions import conditions, ratios, spread
from benchmarks.loading.contestants import CONTESTANTS, OURS
from benchmarks.loading.processes import FailedError, Measured, Run, least_disturbed, measured
from benchmarks.loading.task import BATCH, ROWS

COUNTS = (0, 1, 2, 3, 4)
"""Workers or threads that `--tune` tries."""

Found = Mapping[str, Sequence[Measured]]


def who(task: str, asked: Sequence[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Those who do a task with their workers or threads, and of those left out, why."""
    present, left_out = dict[str, int](), dict[str, str]()
    for name in asked:
        entry = CONTESTANTS[name]
        if task not in entry.threads:
            continue
        if missing := entry.missing():
            left_out[name] = f"not there: {', '.join(missing)}"
        else:
            present[name] = entry.threads[task]
    return present, left_out


def checked(run: Run, present: Mapping[str, int], left_out: dict[str, str]) -> dict[str, int]:
    """Those whose batches are right; others are left out, and that is said on stderr."""
    right = {}
    for name, threads in present.items():
        try:
            measured(run, name, threads, 0)
        except FailedError as failed:
            left_out[name] = f"failed: {failed}"
        else:
            right[name] = threads
    for name, why in left_out.items():
        print(f"{run.task}: {name} is left out; {why}", file=sys.stderr)
    return right


def tuned(run: Run, names: Sequence[str], seconds: float, tries: int) -> dict[str, int]:
    """By contestant, the workers or threads that were fastest; all speeds go to stderr."""
    best = {}
    for name in names:
        speeds = [speed_of(run, name, count, seconds / 2, tries) for count in COUNTS]
        best[name] = COUNTS[speeds.index(max(speeds))]
        print(f"{run.task}: {name} with {COUNTS}: {[round(s) for s in speeds]}", file=sys.stderr)
    return best


def speed_of(run: Run, name: str, count: int, seconds: float, tries: int) -> float:
    """Samples a second; 0 with a number of workers or threads that it refuses."""
    try:
        return least_disturbed(run, name, count, seconds, tries).samples_per_s
    except FailedError as failed:
        print(f"{run.task}: {name} with {count} failed: {failed}", file=sys.stderr)
        return 0.0


def rounds_of(
    run: Run, present: Mapping[str, int], rounds: int, seconds: float, tries: int
) -> dict[str, list[Measured]]:
    """By contestant, what was measured in each round."""
    names = list(present)
    found: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % max(1, len(names))
        for name in (*names[first:], *names[:first]):
            found[name].append(least_disturbed(run, name, present[name], seconds, tries))
    return found


def summary(run: Run, found: Found, present: Mapping[str, int]) -> dict[str, object]:
    speeds = {name: [one.samples_per_s for one in several] for name, several in found.items()}
    return {
        "rows": run.rows,
        "batch": BATCH[run.task],
        "threads": dict(present),
        "samples_per_s": {name: spread(several, 0) for name, several in speeds.items()},
        "ratio_of_distrain_to": {
            name: spread(ratios(speeds[OURS], several))
            for name, several in speeds.items()
            if OURS in speeds and name != OURS
        },
        "peak_rss_mb": {name: peak(several, "rss_mb") for name, several in found.items()},
        "peak_anon_mb": {name: peak(several, "anon_mb") for name, several in found.items()},
        "cores_taken_by_others": {
            name: spread([one.others_cores for one in several], 2)
            for name, several in found.items()
        },
    }


def peak(several: Sequence[Measured], what: str) -> int:
    """The median of the rounds' peaks."""
    peaks: list[float] = [getattr(one, what) for one in several]
    return round(statistics.median(peaks))


def table(run: Run, found: Found, present: Mapping[str, int]) -> str:
    """The fastest first; 80 columns."""
    lines = [
        f"{run.task}: {run.rows:,} samples, {BATCH[run.task]} a batch; "
        "samples/s in thousands, memory in MB",
        f"{'':17}{'workers':>8}{'median':>8}{'least to most':>19}{'distrain/it':>13}"
        f"{'rss':>7}{'anon':>7}",
    ]
    speeds = {name: [one.samples_per_s / 1e3 for one in several] for name, several in found.items()}
    for name in sorted(speeds, key=lambda name: -statistics.median(speeds[name])):
        of, ratio = speeds[name], ""
        if OURS in speeds and name != OURS:
            ratio = f"{statistics.median(ratios(speeds[OURS], of)):.2f}"
        span = f"{min(of):.4g} to {max(of):.4g}"
        lines.append(
            f"{name:17}{present[name]:8}{statistics.median(of):8.4g}{span:>19}{ratio:>13}"
            f"{peak(found[name], 'rss_mb'):7}{peak(found[name], 'anon_mb'):7}"
        )
    return "\n".join(lines)


def packages(names: Sequence[str]) -> list[str]:
    """What the versions are stated of."""
    needed = {package for name in names for package in CONTESTANTS[name].needs.values()}
    return sorted({"numpy", "pillow", *needed})


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    every = ",".join(CONTESTANTS)
    parser.add_argument("--contestants", default=every, help=f"of {', '.join(CONTESTANTS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="that a measurement takes")
    parser.add_argument("--tries", type=int, default=1, help="while others are busy")
    parser.add_argument("--samples", type=int, help="instead of the numbers above")
    parser.add_argument("--tune", action="store_true", help="find the best workers or threads")
    parser.add_argument("--cache", type=Path, help="keeps the data, in every format")
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(arguments)
    for option, there in (("tasks", ROWS), ("contestants", CONTESTANTS)):
        asked = getattr(known, option).split(",")
        if unknown := sorted(set(asked) - set(there)):
            parser.error(f"no {option} {', '.join(unknown)}; there are {', '.join(there)}")
        setattr(known, option, [name for name in there if name in asked])
    if known.rounds < 1 or known.tries < 1 or known.seconds <= 0:
        parser.error("at least 1 round, 1 try and more than 0 seconds are needed")
    if known.samples is not None and known.samples < 8:
        parser.error("at least 8 samples are needed")
    return known


def measure_all(known: argparse.Namespace, cache: Path) -> dict[str, object]:
    """Prints each task's table as soon as it is there; what the JSON says."""
    tasks, all_left_out, took_part = {}, {}, set[str]()
    for task in known.tasks:
        run = Run(task, known.samples or ROWS[task], cache)
        present, left_out = who(task, known.contestants)
        present = checked(run, present, left_out)
        if known.tune:
            present = tuned(run, list(present), known.seconds, known.tries)
        found = rounds_of(run, present, known.rounds, known.seconds, known.tries)
        tasks[task] = summary(run, found, present)
        all_left_out[task] = left_out
        took_part |= set(present)
        print(table(run, found, present) + "\n", flush=True)
    return {
        "config": {
            "rounds": known.rounds,
            "seconds": known.seconds,
            "tries": known.tries,
            "tuned": known.tune,
            "process_per_measurement": True,
        },
        "tasks": tasks,
        "left_out": all_left_out,
        **conditions(packages(sorted(took_part))),
    }


def main(argv: Sequence[str] | None = None) -> None:
    known = parsed(sys.argv[1:] if argv is None else argv)
    if known.cache is not None:
        known.cache.mkdir(parents=True, exist_ok=True)
        found = measure_all(known, known.cache.resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measure_all(known, Path(folder))
    if known.out is not None:
        known.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
