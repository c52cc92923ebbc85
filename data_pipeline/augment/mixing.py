"""Mixtures of two samples of a micro-batch, and of their targets."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from data_pipeline.augment.arguments import require_positive
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.stream import betas
from data_pipeline.augment.targets import probabilities, target_of
from data_pipeline.augment.transform import Samples, check_images
from data_pipeline.errors import DataError


@dataclass(frozen=True)
class Mixup:
    """Each sample becomes `share * sample + (1 - share) * partner`, and its target too.

    Zhang et al., 2018, "mixup: beyond empirical risk minimization". The share is drawn for each
    sample from Beta(alpha, alpha); the partners are a random permutation of the micro-batch, so
    that a sample may be its own. Labels become probabilities; numbers are mixed as they are.
    """

    alpha: float = 0.2
    after_scaling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses an alpha that is not above 0."""
        require_positive(self, "alpha")

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Mixes float32 inputs `(B, ...)` and the target."""
        rows = _mixable("Mixup", samples)
        target = _mixable_target(samples)
        partners = permutation(draw)
        shares = betas(self.alpha, draw.words(1)[:, 0])
        samples.arrays[samples.inputs] = _mixed(rows, partners, shares)
        samples.arrays[str(samples.target)] = _mixed(target, partners, shares)


@dataclass(frozen=True)
class CutMix:
    """A window of each image shows its partner's, and labels are mixed by the areas.

    Yun et al., 2019, "CutMix: regularization strategy": the window's sides are sqrt(1 - share) of
    the image's, share from Beta(alpha, alpha) for each sample, its centre anywhere; what leaves the
    image is cut off. Partners as in `Mixup`. A target that is a number is refused: a part of a
    picture does not hold a part of it.
    """

    alpha: float = 1.0
    after_scaling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses an alpha that is not above 0."""
        require_positive(self, "alpha")

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Mixes float32 images `(B, C, H, W)`, and labels into float32 `(B, num_classes)`."""
        rows = _mixable("CutMix", samples)
        check_images("CutMix", rows)
        labels = probabilities("CutMix", samples)
        partners = permutation(draw)
        sides = np.sqrt(1.0 - betas(self.alpha, draw.words(1)[:, 0]))
        height, width = rows.shape[2:]
        top, bottom = window(height, (height * sides).astype(np.int64), draw)
        left, right = window(width, (width * sides).astype(np.int64), draw)
        covered = inside(top, bottom, height)[:, :, None] & inside(left, right, width)[:, None, :]
        samples.arrays[samples.inputs] = np.where(covered[:, None], rows[partners], rows)
        shares = 1.0 - (bottom - top) * (right - left) / (height * width)
        samples.arrays[str(samples.target)] = _mixed(labels, partners, shares)


def permutation(draw: Draw) -> NDArray[np.int64]:
    """A random order `(B,)` of the micro-batch: that of one word a sample."""
    order: NDArray[np.int64] = np.argsort(draw.words(1)[:, 0], kind="stable")
    return order


def window(
    size: int, lengths: NDArray[np.int64], draw: Draw
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and behind the last place, `(B,)`, of windows with their centre anywhere in [0, size).

    What of their `lengths` `(B,)` lies outside is cut off.
    """
    first = draw.integers(0, size - 1) - lengths // 2
    return np.clip(first, 0, size), np.clip(first + lengths, 0, size)


def inside(first: NDArray[np.int64], behind: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Which of `size` places lie in each window, `(B, size)`."""
    places = np.arange(size)
    return (first[:, None] <= places) & (places < behind[:, None])


def _mixable(transform: str, samples: Samples) -> NDArray[np.float32]:
    rows, column = samples.arrays[samples.inputs], samples.columns[samples.inputs]
    if rows.dtype != np.float32 or column.kind in ("sequence", "text"):
        raise DataError(
            f"{transform} mixes float32 inputs of one size, but column {samples.inputs!r} is a "
            f"{column.kind} of {rows.dtype} here: leave {transform} out"
        )
    return rows


def _mixable_target(samples: Samples) -> NDArray[np.float32]:
    name, column = target_of("Mixup", samples)
    if column.kind == "label":
        return probabilities("Mixup", samples)
    if column.kind not in ("number", "tensor"):
        raise DataError(f"Mixup can't mix targets of kind {column.kind}: leave it out")
    return samples.arrays[name].astype(np.float32)


def _mixed(
    rows: NDArray[np.float32], partners: NDArray[np.int64], shares: NDArray[np.float64]
) -> NDArray[np.float32]:
    share: NDArray[Any] = shares.astype(np.float32).reshape(-1, *[1] * (rows.ndim - 1))
    mixed: NDArray[np.float32] = rows * share
    other = rows[partners]
    other *= np.float32(1.0) - share
    mixed += other
    return mixed
