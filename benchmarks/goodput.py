"""What share of a run's time is of use where workers are killed at random moments?

Workers of a run are killed by SIGKILL, any of them, after times drawn from an exponential
distribution of a mean of 60, 30 and 15 s; the seed is in the result. Of each:

    steps   share of the time of steps that was not for nothing: steps done twice, and those that a
            kill cut off, count as lost
    wall    steps of the run, at the pace of an undisturbed stretch, over the time on the clock from
            its first step on: starts, noticing and checkpoints count as well

    python -m benchmarks.goodput [--workers 4] [--seconds 300] [--means 60,30,15] [--out FILE.json]
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.conditions import conditions
from benchmarks.killed_runs import EVERY_STEPS, OURS, TORCHRUN, KilledRun

PACE_S = 5.0
"""So long a stretch of steps without a kill is timed for."""


@dataclass(frozen=True)
class Goodput:
    """What became of a run's time.

    Attributes:
        kills: How many there were.
        steps: Those that the run has done, each counted once.
        twice: Those that were done again.
        step_s: Seconds of a step in an undisturbed stretch.
        wall_s: Seconds on the clock.
    """

    kills: int
    steps: int
    twice: int
    step_s: float
    wall_s: float

    def shares(self) -> dict[str, float]:
        """The two shares, of 1."""
        return {
            "steps": round(self.steps / (self.steps + self.twice + self.kills), 4),
            "wall": round(self.steps * self.step_s / self.wall_s, 4),
        }


def moments_of(seed: int, mean_s: float, seconds: float, workers: int) -> list[tuple[float, int]]:
    """When whom: seconds from the begin, and a rank; the first at least is within the time."""
    drawn, at = random.Random(f"{seed} {mean_s}"), 0.0
    found: list[tuple[float, int]] = []
    while True:
        at += drawn.expovariate(1 / mean_s)
        if at >= seconds:
            return found or [(seconds / 2, drawn.randrange(workers))]
        found.append((at, drawn.randrange(workers)))


def measure(kind: str, workers: int, seconds: float, moments: list[tuple[float, int]]) -> Goodput:
    """Runs for so long, with a kill at each moment."""
    with KilledRun(kind, workers, len(moments)) as run:
        run.until(lambda: run.is_beyond(1))
        step_s = pace(run, min(PACE_S, seconds))
        first, began, twice = newest_step(run), time.time(), 0
        for at, rank in moments:
            time.sleep(max(0.0, began + at - time.time()))
            twice += run.lose(rank).twice
        time.sleep(max(0.0, began + seconds - time.time()))
        wall_s, last = time.time() - began, newest_step(run)
    return Goodput(len(moments), last - first, twice, step_s, wall_s)


def pace(run: KilledRun, seconds: float) -> float:
    """The median time of a step over so long."""
    marks: list[tuple[int, float]] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(marks) < 2:
        start = run.start()
        assert start is not None
        if not marks or start.step > marks[-1][0]:
            marks.append((start.step, start.newest))
        time.sleep(0.2)
    paces = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(marks)]
    return statistics.median(paces)


def newest_step(run: KilledRun) -> int:
    start = run.start()
    assert start is not None
    return start.step


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=300.0, help="of each run")
    parser.add_argument("--means", default="60,30,15", help="seconds between two kills")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(argv)
    means = [float(mean) for mean in known.means.split(",")]
    if known.workers < 2 or known.seconds <= 0 or min(means) <= 0:
        parser.error("at least 2 workers, and times above 0, are needed")
    found: dict[str, dict[str, object]] = {}
    for mean_s in means:
        moments = moments_of(known.seed, mean_s, known.seconds, known.workers)
        found[f"{mean_s:g}"] = {"kills": len(moments)} | {
            kind: measure(kind, known.workers, known.seconds, moments).shares()
            for kind in (OURS, TORCHRUN)
        }
    config = {"workers": known.workers, "seconds": known.seconds, "every_steps": EVERY_STEPS}
    result = {
        "config": {**config, "seed": known.seed},
        "by_mean_time_between_kills_s": found,
        **conditions(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if known.out is not None:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
