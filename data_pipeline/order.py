"""Which sample stands at which position of an epoch: computed, not stored.

The shuffle is a Feistel network over b bits, b = (N - 1).bit_length(), a bijection of [0, 2^b);
values of N or more are sent through it again until they fall below N ("cycle walking", Black and
Rogaway, 2002, "Ciphers with arbitrary finite domains"), which makes it a bijection of [0, N). Since
2^b < 2N, fewer than two passes are needed on average. No state, so any range of positions costs
the same wherever it lies.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.compiled import compiled
from data_pipeline.random import derive_key, words_at

NUM_ROUNDS = 24
"""Each round changes one half. A chi-square test tells the orders of 5 or 6 rows from uniform ones
after 1,500 epochs with 8 rounds, after some 20,000 with 16; with 24 it finds nothing in 400,000."""

BLOCK = 8_192
"""Positions that are worth a call: a loader asks for so many at a time."""

_FEW_MEMBERS = 64
"""A class of so many rows or fewer is put in order by sorting, all passes in one call."""

_LANES = 512
"""Values that a round is done for in turn: they stay in the first-level cache."""


class Order(Protocol):
    """What stands at which position of one epoch."""

    @property
    def num_rows(self) -> int:
        """How many positions an epoch has."""
        ...

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers `(stop - start,)`, int64, at the positions [start, stop)."""
        ...


@dataclass(frozen=True)
class ShuffledOrder:
    """The order of one epoch over `num_rows` rows, keyed by (seed, epoch): each row once."""

    num_rows: int
    seed: int
    epoch: int
    _round_keys: NDArray[np.uint64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Derives the keys of the rounds."""
        # Here, and not where a thread wants them first: a cached_property of Python 3.11 has a
        # lock, which a fork at that moment would take with it.
        keys = words_at(derive_key("order", self.seed, self.epoch), 0, NUM_ROUNDS, 1)
        object.__setattr__(self, "_round_keys", keys[:, 0].copy())

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers `(stop - start,)`, int64, at the positions [start, stop)."""
        check_range(start, stop, self.num_rows)
        out = np.empty(stop - start, dtype=np.int64)
        low_bits = ((self.num_rows - 1).bit_length() + 1) // 2
        high_bits = (self.num_rows - 1).bit_length() // 2
        _permute(start, self.num_rows, self._round_keys, low_bits, high_bits, out)
        return out


@dataclass(frozen=True)
class SequentialOrder:
    """The rows as they are stored: for evaluation and prediction."""

    num_rows: int

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers `(stop - start,)`, int64: the positions themselves."""
        check_range(start, stop, self.num_rows)
        return np.arange(start, stop, dtype=np.int64)


@dataclass(frozen=True)
class BootstrapOrder:
    """As many rows as there are, each drawn from all of them: sampling with replacement.

    About 63% of the rows come in an epoch, which is what bagging wants (Breiman, 1996, "Bagging
    predictors"). With `resampled` false every epoch has the same rows, in another order: one
    bootstrap sample a seed.
    """

    num_rows: int
    seed: int
    epoch: int
    resampled: bool = True

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers `(stop - start,)`, int64, at the positions [start, stop)."""
        check_range(start, stop, self.num_rows)
        if self.resampled:
            return self._drawn(self.epoch, np.arange(start, stop, dtype=np.int64))
        places = ShuffledOrder(self.num_rows, self.seed, self.epoch).rows(start, stop)
        return self._drawn(0, places)

    def _drawn(self, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        key = np.uint64(derive_key("bootstrap", self.seed, epoch) & (2**64 - 1))
        drawn = np.empty(len(places), dtype=np.int64)
        _draw_rows(key, self.num_rows, places, drawn)
        return drawn


@dataclass(frozen=True)
class BalancedOrder:
    """Every class equally often: of each C positions in a row, one of each of the C classes.

    The rows of a class come in an order of their own, all of them before one comes again.
    `by_class` costs 8 bytes a row.
    """

    num_rows: int
    seed: int
    epoch: int
    by_class: tuple[NDArray[np.int64], ...]

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Row numbers `(stop - start,)`, int64, at the positions [start, stop)."""
        check_range(start, stop, self.num_rows)
        num_classes = len(self.by_class)
        first, last = start // num_classes, -(-stop // num_classes)
        key = derive_key("classes", self.seed, self.epoch)
        classes = words_at(key, first, last - first, num_classes).argsort(axis=1, kind="stable")
        members = np.stack([self._visits(c, first, last) for c in range(num_classes)], axis=1)
        rows = np.take_along_axis(members, classes, axis=1).reshape(-1)
        return rows[start - first * num_classes : stop - first * num_classes]

    def _visits(self, number: int, first: int, last: int) -> NDArray[np.int64]:
        """The rows of a class at its visits [first, last)."""
        members = self.by_class[number]
        if len(members) <= _FEW_MEMBERS:
            return self._visits_of_few(number, first, last)
        found = []
        while first < last:
            done, place = divmod(first, len(members))
            end = min(last - first + place, len(members))
            key = derive_key("class", self.seed, self.epoch, number, done)
            found.append(members[ShuffledOrder(len(members), key, 0).rows(place, end)])
            first += end - place
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _visits_of_few(self, number: int, first: int, last: int) -> NDArray[np.int64]:
        """The same for a class that is gone through many times in a block: all passes at once."""
        members = self.by_class[number]
        done, until = first // len(members), -(-last // len(members))
        key = derive_key("class", self.seed, self.epoch, number)
        words = words_at(key, done, until - done, len(members))
        visits = members[words.argsort(axis=1, kind="stable")].reshape(-1)
        return visits[first - done * len(members) : last - done * len(members)]


def rows_by_class(labels: NDArray[Any], num_classes: int) -> tuple[NDArray[np.int64], ...]:
    """The rows of each class that has any, from labels `(N,)`."""
    by_class = np.argsort(labels, kind="stable").astype(np.int64, copy=False)
    counts = np.bincount(labels, minlength=num_classes)
    return tuple(rows for rows in np.split(by_class, np.cumsum(counts)[:-1]) if len(rows))


def check_range(start: int, stop: int, num_rows: int) -> None:
    """Refuses positions outside of an epoch.

    Raises:
        IndexError: not `0 <= start <= stop <= num_rows`.
    """
    if not 0 <= start <= stop <= num_rows:
        raise IndexError(f"positions [{start}, {stop}) lie outside of [0, {num_rows})")


@compiled
def _mix(half: np.uint64, key: np.uint64) -> np.uint64:
    """A keyed hash of one half: the finalizer of MurmurHash3, which needs both multiplications.

    With one, values that lie close together hash to values at a fixed distance, and neighbours in
    the order were seen to be far from random.
    """
    mixed = (half ^ key) * np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    return mixed >> np.uint64(33)


@compiled
def _permute(
    start: int,
    num_rows: int,
    keys: NDArray[np.uint64],
    low_bits: int,
    high_bits: int,
    out: NDArray[np.int64],
) -> None:
    """Sends positions through the network, a round for all lanes at a time.

    A value that lands outside keeps a lane for another walk, and the others take in new positions,
    so that all lanes are at work whatever `num_rows` is. A high and a low half change in turn.
    """
    one, shift, limit = np.uint64(1), np.uint64(low_bits), np.uint64(num_rows)
    low_mask, high_mask = (one << shift) - one, (one << np.uint64(high_bits)) - one
    low, high = np.empty(_LANES, np.uint64), np.empty(_LANES, np.uint64)
    place = np.empty(_LANES, np.int64)
    begun, live = 0, 0
    while begun < len(out) or live:
        while live < _LANES and begun < len(out):
            value = np.uint64(start + begun)
            low[live], high[live], place[live] = value & low_mask, value >> shift, begun
            live, begun = live + 1, begun + 1
        for number in range(0, len(keys), 2):
            for lane in range(live):
                high[lane] ^= _mix(low[lane], keys[number]) & high_mask
            for lane in range(live):
                low[lane] ^= _mix(high[lane], keys[number + 1]) & low_mask
        outside = 0
        for lane in range(live):
            value = (high[lane] << shift) | low[lane]
            if value < limit:
                out[place[lane]] = np.int64(value)
            else:
                low[outside], high[outside], place[outside] = low[lane], high[lane], place[lane]
                outside += 1
        live = outside


@compiled
def _draw_rows(
    key: np.uint64, num_rows: int, places: NDArray[np.int64], out: NDArray[np.int64]
) -> None:
    """A row for each place: SplitMix64 (Steele et al., 2014) of it, scaled to [0, num_rows).

    Scaling takes the upper 64 bits of the product with `num_rows` (Lemire, 2019), whose bias is
    below num_rows / 2^64.
    """
    half, lower = np.uint64(32), np.uint64(0xFFFFFFFF)
    limit = np.uint64(num_rows)
    for number in range(len(places)):
        word = key + np.uint64(places[number]) * np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
        top, bottom = word >> half, word & lower
        crossed = top * (limit & lower) + ((bottom * (limit & lower)) >> half)
        middle = bottom * (limit >> half) + (crossed & lower)
        out[number] = np.int64(top * (limit >> half) + (crossed >> half) + (middle >> half))
