"""Who is slower than the others, and in which phase, from what all workers tell of their time.

With each step every worker says how long it has spent in one phase, another one each time in turn,
since it said so last: one word beside the sums. Rank 0 alone judges, and nothing follows from it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from distrain.coordinator.phases import Phase

REPORTED = (
    *(Phase.LOADING, Phase.FORWARD, Phase.BACKWARD, Phase.REDUCTION),
    *(Phase.UPDATE, Phase.EVALUATION, Phase.CHECKPOINT, Phase.LOGGING),
)
"""The phases that are told of, in their turn."""

_BY_SHARE = (Phase.LOADING, Phase.FORWARD, Phase.BACKWARD)
_ALIKE = (Phase.UPDATE, Phase.EVALUATION)
"""What is judged: work of a worker's own, by its micro-batches or the same for all. Rank 0 alone
writes, and who waits for others is not slow."""

RATIO, LEAST_S = 1.5, 0.01
"""Slow is who takes longer by this factor, and by so much a step, than the others would."""

WINDOW_S = 10.0
"""So long is listened before judging."""


@dataclass(frozen=True)
class SlowRank:
    """A worker that is slower than the others.

    Attributes:
        seconds: Its time in the phase, a step.
        usual_s: What the median of the others would take for as many micro-batches.
    """

    rank: int
    phase: Phase
    seconds: float
    usual_s: float


def phase_of(step: int) -> Phase:
    """What is told of with a step, counted from 0."""
    return REPORTED[step % len(REPORTED)]


def slow_ranks(
    seconds: Mapping[Phase, Sequence[float]], micro_batches: Sequence[float]
) -> list[SlowRank]:
    """Who is slow by the rule above.

    Args:
        seconds: A step, by phase and rank.
        micro_batches: That each worker has computed a step; who has none is not judged.
    """
    found = []
    for phase in (*_BY_SHARE, *_ALIKE):
        shares = micro_batches if phase in _BY_SHARE else [1.0] * len(micro_batches)
        spent = dict(enumerate(seconds.get(phase, ())))
        rates = {rank: s / shares[rank] for rank, s in spent.items() if shares[rank]}
        for rank in rates:
            others = [rate for other, rate in rates.items() if other != rank]
            if not others:
                continue
            usual_s = median(others) * shares[rank]
            if spent[rank] > RATIO * usual_s and spent[rank] - usual_s > LEAST_S:
                found.append(SlowRank(rank, phase, spent[rank], usual_s))
    return found


@dataclass(frozen=True)
class Window:
    """What was told in some steps.

    Attributes:
        seconds: A step, by phase and rank.
        slow: Who was slow.
    """

    steps: int
    seconds: Mapping[Phase, Sequence[float]]
    slow: Sequence[SlowRank]


class PhaseTimes:
    """Collects what the workers tell, a window after the other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The first turn of phases is left out: it has the start in it."""
        self._clock = clock
        self._left_out = len(REPORTED)
        self._begin()

    def _begin(self) -> None:
        self._began, self._steps = self._clock(), 0
        self._spent_us: dict[Phase, list[int]] = {}
        self._micro_batches: list[int] = []

    def add(
        self, step: int, spent_us: Sequence[int], micro_batches: Sequence[int]
    ) -> Window | None:
        """Takes what came with a step, both by rank; the window that ends with it, if one does."""
        if self._left_out:
            self._left_out -= 1
            self._began = self._clock()
            return None
        phase, none = phase_of(step), [0] * len(spent_us)
        self._spent_us[phase] = _sum(self._spent_us.get(phase, none), spent_us)
        self._micro_batches = _sum(self._micro_batches or none, micro_batches)
        self._steps += 1
        if self._steps % len(REPORTED) or self._clock() - self._began < WINDOW_S:
            return None  # each phase has been told of as often as any other
        seconds = {
            phase: [1e-6 * us / self._steps for us in by_rank]
            for phase, by_rank in sorted(self._spent_us.items())
        }
        shares = [number / self._steps for number in self._micro_batches]
        window = Window(self._steps, seconds, slow_ranks(seconds, shares))
        self._begin()
        return window


def _sum(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]
