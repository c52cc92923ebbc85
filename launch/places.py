"""Which of a machine's places for workers are taken, and which are given up: plain values alone.

A place is a number from 0; it stands for a device where there are any, so a worker keeps its place
though its rank moves up.
"""

from collections.abc import Sequence

from distrain.errors import UsageError
from launch.number_range import NumberRange


class Places:
    """The places that workers are started in, the next time and now.

    Attributes:
        range: How many there may be.
        taken: By local rank, the place of each worker of this start.
    """

    def __init__(self, workers: NumberRange) -> None:
        """Takes as many as there may be."""
        self.range = workers
        self._next = list(range(workers.most))
        self._given_up: list[int] = []
        self._lost: set[int] = set()
        self.taken: Sequence[int] = tuple(self._next)

    def __len__(self) -> int:
        """How many workers the next start has."""
        return len(self._next)

    def begin(self) -> Sequence[int]:
        """A start: the workers are where they were last meant to be."""
        self.taken = tuple(self._next)
        return self.taken

    def lose(self, local_rank: int, *, stepped: bool) -> int | None:
        """A worker of this start is lost: the place that is given up for it, None where none is.

        One that is lost has another try. Lost again with no step done in between, its device or
        its memory is gone: the others go on without it, unless they would be fewer than `least`.

        Args:
            local_rank: Whose place.
            stepped: Whether this start had done a step.
        """
        place = self.taken[local_rank]
        again = place in self._lost and not stepped
        self._lost = {place} | (set() if stepped else self._lost)
        if not again or place not in self._next or len(self._next) == self.range.least:
            return None
        self._lost.discard(place)
        self._next.remove(place)
        self._given_up.append(place)
        return place

    def resize(self, workers: int) -> None:
        """The next start has so many; a place that was given up is the last to be taken again.

        Raises:
            UsageError: the range doesn't have this number.
        """
        if not self.range.least <= workers <= self.range.most:
            raise UsageError(f"{workers} workers are asked for; the run may have {self.range}")
        free = [place for place in range(self.range.most) if place not in self._next]
        free.sort(key=lambda place: (place in self._given_up, place))
        self._next = sorted([*self._next[:workers], *free[: max(0, workers - len(self._next))]])
        self._given_up = [place for place in self._given_up if place not in self._next]
