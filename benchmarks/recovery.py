"""What does the death of a worker cost: until the next finished step, and in steps done twice?

One of the workers is killed by SIGKILL while it trains, in distrain's run and in one of plain
torchrun with a torch.save checkpoint every 50 steps: the same net, data and batch. The moments are
drawn over the steps between two checkpoints; the seed is in the result. By the runs' own logs:

    next_step   seconds from the kill to the next step that is done
    caught_up   seconds from the kill until the first step is done that had not been done before it
    twice       steps done again

    python -m benchmarks.recovery [--workers 4] [--rounds 3] [--kills 5] [--out FILE.json]
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.conditions import conditions, ratios, spread
from benchmarks.killed_runs import EVERY_STEPS, OURS, TORCHRUN, KilledRun

FIGURES = ("next_step", "caught_up", "twice")


def measure_one(run: KilledRun, rank: int, steps: int) -> dict[str, float]:
    """Kills a worker once the newest start has done so many steps; what it costs."""

    def ripe() -> bool:
        start = run.start()
        return start is not None and start.step - start.resumed >= steps

    run.until(ripe)
    loss = run.lose(rank)
    run.until(lambda: run.is_beyond(loss.before + 1))
    return {
        "next_step": loss.stepped - loss.killed,
        "caught_up": run.time_of(loss.before + 1) - loss.killed,
        "twice": loss.twice,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5, help="of each run in each round")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    parser.add_argument("--out", type=Path)
    known = parser.parse_args(argv)
    if known.workers < 2 or known.kills < 1 or known.rounds < 1:
        parser.error("at least 2 workers, 1 kill and 1 round are needed")
    moments = random.Random(known.seed)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(known.rounds):
        plan = [
            (moments.randrange(known.workers), EVERY_STEPS + moments.randrange(EVERY_STEPS))
            for _ in range(known.kills)
        ]
        for kind in (OURS, TORCHRUN):
            with KilledRun(kind, known.workers, known.kills) as run:
                found[kind] += [measure_one(run, rank, steps) for rank, steps in plan]
    result = {
        "config": {
            "workers": known.workers,
            "rounds": known.rounds,
            "kills": known.kills,
            "every_steps": EVERY_STEPS,
            "seed": known.seed,
        },
        **{
            figure: {kind: spread([one[figure] for one in each]) for kind, each in found.items()}
            for figure in FIGURES
        },
        "ratio_of_distrain_to_torchrun": {
            figure: spread(
                ratios([o[figure] for o in found[OURS]], [t[figure] for t in found[TORCHRUN]])
            )
            for figure in ("next_step", "caught_up")
        },
        **conditions(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if known.out is not None:
        known.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
