"""What every run has to leave, whatever happened to it."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from tests.faults.job import STEPS, STEPS_PER_EPOCH
from tests.run_folders import Outcome, outcome


@dataclass(frozen=True)
class Use:
    """What a start of a run has begun to do in one step: the rows, by all its workers."""

    began_ns: int
    rows: list[int]


def uses(points: Path) -> dict[int, list[Use]]:
    """By step, counted from 0: how often it was begun and with which rows, in order of time."""
    begun: dict[tuple[int, int], list[Use]] = defaultdict(list)
    for path in points.glob("rows-*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else its writer was killed
                said = json.loads(line)
                begun[said["step"], said["start"]].append(Use(said["time"], said["rows"]))
    steps: dict[int, list[Use]] = defaultdict(list)
    for (step, _), parts in begun.items():
        rows = sorted(row for part in parts for row in part.rows)
        steps[step].append(Use(max(part.began_ns for part in parts), rows))
    return {step: sorted(found, key=lambda use: use.began_ns) for step, found in steps.items()}


def judge(run: Path, points: Path, expected: Outcome) -> int:
    """Compares a run that has ended with the one that nothing happened to.

    The weights' SHA-256 and all that the log tells of steps and epochs have to be the same. What
    went into the weights is the last try of each step: of those, each epoch has every row once.

    Returns:
        How many tries of steps were in vain: steps that were lost and done again.
    """
    weights, told = outcome(run)
    assert weights == expected[0], "the weights differ from those of the unbroken run"
    assert told == expected[1], "the log tells of other steps or epochs than the unbroken run's"
    tries = uses(points)
    assert sorted(tries) == list(range(STEPS)), "steps are missing, or too many"
    every_row = list(range(sum(event["samples"] for event in told[:STEPS_PER_EPOCH])))
    for begin in range(0, STEPS, STEPS_PER_EPOCH):
        epoch = range(begin, begin + STEPS_PER_EPOCH)
        used = sorted(row for step in epoch for row in tries[step][-1].rows)
        number = 1 + begin // STEPS_PER_EPOCH
        assert used == every_row, f"epoch {number} did not use every sample once"
    return sum(len(found) - 1 for found in tries.values())
