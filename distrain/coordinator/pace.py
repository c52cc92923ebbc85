"""How often snapshots are taken: as often as asked for, or as their cost allows."""

import math
from collections import deque

MOST_SHARE = 0.02
"""Of the time, that snapshots may take where nobody says how often they are wanted."""


_COSTS = 10
"""The least of so many last costs counts: what else the machine does makes a copy look dear."""


class Pace:
    """Says at which steps a snapshot is due."""

    def __init__(self, every_steps: int | None) -> None:
        """`every_steps` of None is for as often as costs `MOST_SHARE` of the time; 0 for never."""
        self._every_steps = every_steps
        self._next_s = -math.inf
        self._costs: deque[float] = deque(maxlen=_COSTS)

    @property
    def is_never(self) -> bool:
        """Whether none will ever be."""
        return self._every_steps == 0

    def is_due(self, step: int, now_s: float) -> bool:
        """Whether the state after a step, which ends now, is to be copied."""
        if self._every_steps is not None:
            return self._every_steps > 0 and step % self._every_steps == 0
        return now_s >= self._next_s

    def took(self, cost_s: float, now_s: float) -> None:
        """A snapshot is taken, and was in the loop's way for so long."""
        self._costs.append(cost_s)
        self._next_s = now_s + min(self._costs) * (1 / MOST_SHARE - 1)
