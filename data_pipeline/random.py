"""Counter-based random numbers: a pure function of (key, position), whoever asks and when.

The generator is Philox (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3"), as
NumPy ships it: position p owns the counters [p * blocks, (p + 1) * blocks), so a range of
positions is one call and any worker that draws for a position draws the same.
"""

import hashlib
import operator

import numpy as np
from numpy.typing import NDArray

DRAWS_VERSION = 1
"""Stands for how orders and transforms draw: raised with any change of what the recorded draws in
the tests show, so that no run goes on in another order than it began in."""

WORDS_PER_BLOCK = 4
"""One Philox4x64 counter gives four 64-bit words."""


def derive_key(*parts: int | str) -> int:
    """A 128-bit key from the parts taken together.

    Hashed as a tuple: `seed + epoch` would make (s, e + 1) and (s + 1, e) the same stream.
    """
    # A NumPy integer is the same key as Python's.
    text = "\x1f".join(
        f"str:{part}" if isinstance(part, str) else f"int:{operator.index(part)}" for part in parts
    )
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def words_at(key: int, first_position: int, count: int, num_words: int) -> NDArray[np.uint64]:
    """Random words `(count, num_words)` for the positions from `first_position` on."""
    blocks = -(-num_words // WORDS_PER_BLOCK)
    generator = np.random.Philox(key=key, counter=first_position * blocks)
    raw = generator.random_raw(count * blocks * WORDS_PER_BLOCK)
    words: NDArray[np.uint64] = raw.reshape(count, blocks * WORDS_PER_BLOCK)[:, :num_words]
    return words


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), from the upper 53 bits of each word."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(words: NDArray[np.uint64], low: int, high: int) -> NDArray[np.int64]:
    """Uniform int64 in [low, high] (both included); the bias is below (high - low) * 2**-53."""
    scaled: NDArray[np.int64] = np.floor(uniform(words) * (high - low + 1)).astype(np.int64)
    return low + scaled
