"""The random numbers of one transform: keyed by the sample's position, whoever asks for them."""

from typing import overload

import numpy as np
from numpy.typing import NDArray

from data_pipeline.random import derive_key, integers, uniform, words_at


class Draw:
    """Random numbers for `num_samples` samples at consecutive positions of an epoch.

    They come from (seed, epoch, place of the transform in its list, number of the call, position):
    a sample is changed in the same way by whichever worker or thread loads it, in whatever
    company, and anew in every epoch. So a transform must ask in the same order always.
    """

    def __init__(
        self, seed: int, epoch: int, place: int, first_position: int, num_samples: int
    ) -> None:
        """For the transform at `place` in its list."""
        self.num_samples = num_samples
        self._parts, self._first_position, self._calls = (seed, epoch, place), first_position, 0

    def words(self, count: int) -> NDArray[np.uint64]:
        """`(num_samples, count)` words of 64 random bits."""
        key = derive_key("augment", *self._parts, self._calls)
        self._calls += 1
        return words_at(key, self._first_position, self.num_samples, count)

    @overload
    def uniform(self, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]: ...

    @overload
    def uniform(self, low: float, high: float, count: int) -> NDArray[np.float64]: ...

    def uniform(
        self, low: float = 0.0, high: float = 1.0, count: int | None = None
    ) -> NDArray[np.float64]:
        """Uniform in [low, high): `(num_samples,)`, or `(num_samples, count)`."""
        drawn = low + (high - low) * uniform(self.words(count or 1))
        return drawn[:, 0] if count is None else drawn

    def integers(self, low: int, high: int) -> NDArray[np.int64]:
        """Whole numbers in [low, high], both included, `(num_samples,)`."""
        return integers(self.words(1)[:, 0], low, high)

    def happens(self, probability: float) -> NDArray[np.bool_]:
        """Whether something of that probability happens, `(num_samples,)`."""
        return self.uniform() < probability
