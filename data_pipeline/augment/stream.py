"""Many random numbers from one word a sample: a hash of the word and of a count.

The hash is that of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
generators"): number `index` of the stream of `seed` needs none of those before it. Used where a
transform needs a number an element, or does not know how many it will need.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.compiled import compiled


@compiled
def word_at(seed: Any, index: Any) -> Any:
    """Word `index`, uint64, of the stream of `seed`, uint64."""
    word = seed + (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def uniform_at(seed: Any, index: Any) -> Any:
    """Uniform float64 in (0, 1), neither end included."""
    return (np.float64(word_at(seed, index) >> np.uint64(12)) + 0.5) * 2.0**-52


@compiled
def normal_at(seed: Any, index: Any) -> Any:
    """Standard normal float64, from the uniform numbers 2 `index` and the next.

    Box and Muller, 1958, "A note on the generation of random normal deviates".
    """
    radius = math.sqrt(-2.0 * math.log(uniform_at(seed, 2 * index)))
    return radius * math.cos(2.0 * math.pi * uniform_at(seed, 2 * index + 1))


@compiled
def fill_with_normals(seeds: NDArray[np.uint64], out: NDArray[Any]) -> None:
    """Standard normal numbers for `out` `(B, N)`, float32 or float64, from seeds `(B,)`.

    Both numbers of each pair of Box and Muller are used; an odd last one is left over.
    """
    count, length = out.shape
    for sample in range(count):
        seed = seeds[sample]
        for pair in range((length + 1) // 2):
            radius = math.sqrt(-2.0 * math.log(uniform_at(seed, 2 * pair)))
            angle = 2.0 * math.pi * uniform_at(seed, 2 * pair + 1)
            out[sample, 2 * pair] = radius * math.cos(angle)
            if 2 * pair + 1 < length:
                out[sample, 2 * pair + 1] = radius * math.sin(angle)


@compiled
def _log_gamma_variate(shape: Any, seed: Any, first: Any) -> Any:
    """The logarithm of a number from Gamma(shape, 1), shape >= 1, and the next unused index.

    Marsaglia and Tsang, 2000, "A simple method for generating gamma variables".
    """
    d = shape - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    trial = first
    while True:
        x = normal_at(seed, trial)
        u = uniform_at(seed, 2 * trial + 2)
        trial += 2
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            return math.log(d * v), trial


@compiled
def _fill_with_betas(alpha: float, seeds: NDArray[np.uint64], out: NDArray[np.float64]) -> None:
    for sample in range(len(seeds)):
        seed = seeds[sample]
        # Gamma(a) is Gamma(a + 1) times U^(1/a); logarithms keep small ones from vanishing.
        first, trial = _log_gamma_variate(alpha + 1.0, seed, 0)
        second, trial = _log_gamma_variate(alpha + 1.0, seed, trial)
        first += math.log(uniform_at(seed, 2 * trial)) / alpha
        second += math.log(uniform_at(seed, 2 * trial + 1)) / alpha
        difference = second - first
        if difference > 700.0:
            out[sample] = 0.0
        else:
            out[sample] = 1.0 / (1.0 + math.exp(difference))


def betas(alpha: float, seeds: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number from Beta(alpha, alpha) for each seed: `(B,)` from `(B,)`."""
    out = np.empty(len(seeds), np.float64)
    _fill_with_betas(alpha, seeds, out)
    return out


def normals(seeds: NDArray[np.uint64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal numbers `(B, *shape)`, float32, from seeds `(B,)`."""
    out = np.empty((len(seeds), math.prod(shape)), np.float32)
    fill_with_normals(seeds, out)
    return out.reshape(len(seeds), *shape)
