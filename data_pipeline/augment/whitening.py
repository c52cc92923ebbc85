"""Centring and scaling of each sample by itself, and ZCA whitening by the training data.

Keras' feature-wise centring and standard deviation are no transforms here: the pipeline does both
by itself with the training part's statistics, by channel as Keras does (`standardize`).
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped, unused-ignore]

from data_pipeline.augment.arguments import require_positive
from data_pipeline.augment.draw import Draw
from data_pipeline.augment.transform import InputTransform, Samples
from data_pipeline.compiled import compiled
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError
from data_pipeline.ragged import LENGTHS
from data_pipeline.standardize import Standardization

MAX_FEATURES = 4_096
"""More would take a covariance matrix of over 128 MiB, and minutes for its eigenvectors."""

_BLOCK = 1_024
"""Rows that are read at once; the sums are over these blocks, in order."""


@dataclass(frozen=True)
class SamplewiseStandardize(InputTransform):
    """Takes from each sample its own mean, and divides it by its own standard deviation.

    Keras' `samplewise_center`, and with `std` `samplewise_std_normalization`: both over all values
    of the sample, whatever its channels, and divided by the population's deviation + 1e-6. Made
    for runs that have standardisation by the training part turned off. Of a padded sequence only
    the steps that it has are counted and changed (its length is in the column NAME_lengths).
    """

    std: bool = True
    after_scaling: ClassVar[bool] = True

    def __call__(self, samples: Samples, draw: Draw) -> None:
        """Changes the inputs, of sequences the steps before their padding."""
        lengths = samples.arrays.get(samples.inputs + LENGTHS)
        if lengths is None:
            super().__call__(samples, draw)
            return
        rows = samples.arrays[samples.inputs]
        values = np.minimum(lengths, rows.shape[1]) * int(np.prod(rows.shape[2:]))
        samples.arrays[samples.inputs] = self._standardized(rows, values)

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:  # noqa: ARG002
        """float32 `(B, ...)` of mean 0; nothing is drawn."""
        return self._standardized(rows, np.full(len(rows), _features(rows)))

    def _standardized(self, rows: NDArray[Any], counts: NDArray[Any]) -> NDArray[np.float32]:
        """By the first values of each row, so many as `counts` says; the others become 0."""
        flat = np.ascontiguousarray(rows, dtype=np.float32).reshape(len(rows), _features(rows))
        out = np.zeros_like(flat)
        _standardize_each(flat, counts.astype(np.int64), self.std, out)
        return out.reshape(rows.shape)


@dataclass(frozen=True)
class ZCAWhitening(InputTransform):
    """Decorrelates the features: `(x - mean) U diag(1 / sqrt(s + epsilon)) U^T`.

    U and s are eigenvectors and eigenvalues of the training data's covariance (Bell and Sejnowski,
    1997; Krizhevsky, 2009, "Learning multiple layers of features", appendix A). It is Keras'
    `zca_whitening` with `zca_epsilon`, but that each feature has its own mean taken off, where
    Keras has one mean a channel. What is whitened are the standardised values; a run that has
    standardisation turned off whitens the raw ones, as Keras does. It must be `fitted` before its
    first use.

    Attributes:
        epsilon: What keeps small eigenvalues from being blown up.
        digest: SHA-256 of what was fitted; "" before.
        fitted_to: SHA-256 of what it was fitted with: data set, column and standardisation.
        mean: float32 `(F,)`, over the standardised training rows.
        matrix: float32 `(F, F)`, symmetric.
    """

    epsilon: float = 1e-6
    digest: str = field(default="", init=False)
    fitted_to: str = field(default="", init=False, compare=False, repr=False)
    mean: NDArray[np.float32] | None = field(default=None, init=False, compare=False, repr=False)
    matrix: NDArray[np.float32] | None = field(default=None, init=False, compare=False, repr=False)
    after_scaling: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuses an epsilon that divides by 0."""
        require_positive(self, "epsilon")

    def fitted(
        self, dataset: Dataset, column: str, standardization: Standardization | None = None
    ) -> "ZCAWhitening":
        """The same, with mean and matrix of a column of the training data, as it is standardised.

        Two passes in blocks of fixed size and in float64, on one thread: the same bits on every
        machine with the same CPU and libraries. Others may differ in the last bits, and so in
        the digest. One that was fitted to the very same is given back as it is.

        Raises:
            DataError: the column's rows differ in size, or have more than 4,096 values.
        """
        fitted_to = _identity(dataset, column, standardization)
        if self.fitted_to == fitted_to:
            return self
        described = dataset.column(column)
        features = int(np.prod(described.shape))
        if described.kind != "tensor" or features > MAX_FEATURES:
            raise DataError(
                f"ZCAWhitening takes a tensor of at most {MAX_FEATURES:,} values, but column "
                f"{column!r} is a {described.kind} of shape {described.shape}: make the images "
                "smaller (`--size` when converting), or leave ZCAWhitening out"
            )
        rows = _StandardizedBlocks(dataset, column, standardization)
        with threadpool_limits(1):
            mean = sum(block.sum(axis=0) for block in rows) / len(dataset)
            covariance = np.zeros((features, features))
            for block in rows:
                centred = block - mean
                covariance += centred.T @ centred
            matrix = zca_matrix(covariance / len(dataset), self.epsilon)
        whitening = ZCAWhitening(self.epsilon)
        digest = hashlib.sha256()
        for name, array in ("mean", mean), ("matrix", matrix):
            values = np.ascontiguousarray(array, dtype=np.float32)
            digest.update(values.tobytes())
            object.__setattr__(whitening, name, values)
        object.__setattr__(whitening, "digest", digest.hexdigest())
        object.__setattr__(whitening, "fitted_to", fitted_to)
        return whitening

    def changed(self, rows: NDArray[Any], draw: Draw) -> NDArray[Any]:  # noqa: ARG002
        """Whitened float32 `(B, ...)`; nothing is drawn.

        The sums are in one order whatever the number of samples, which BLAS does not promise.
        """
        if self.mean is None or self.matrix is None:
            raise DataError(
                "ZCAWhitening has no matrix yet: Trainer and Loader fit it before the first batch; "
                "alone, call fitted(dataset, column, standardization) with the standardization "
                "that the batches get, and use what that gives"
            )
        features = _features(rows)
        if features != len(self.mean):
            raise DataError(
                f"ZCAWhitening was fitted to {len(self.mean)} values a sample, but these have "
                f"{features}: fit it to the inputs as they are after all other transforms"
            )
        flat: NDArray[np.float32] = rows.reshape(len(rows), features).astype(np.float32)
        flat -= self.mean
        out = np.zeros_like(flat)
        _multiply(flat, self.matrix, out)
        return out.reshape(rows.shape)


def _identity(dataset: Dataset, column: str, standardization: Standardization | None) -> str:
    """SHA-256 of the training rows that a matrix is fitted to."""
    found = hashlib.sha256(f"{dataset.digest} {dataset.part!r} {column!r}".encode())
    if standardization is not None:
        found.update(f" {standardization.axis} {len(standardization.scale)} ".encode())
        found.update(standardization.scale.tobytes() + standardization.offset.tobytes())
    return found.hexdigest()


def zca_matrix(covariance: NDArray[np.float64], epsilon: float) -> NDArray[np.float64]:
    """`U diag(1 / sqrt(s + epsilon)) U^T`, float64 `(F, F)`, for a covariance `(F, F)`."""
    values, vectors = np.linalg.eigh(covariance)
    # Rounding leaves eigenvalues of 0 slightly negative.
    scaled = vectors / np.sqrt(np.maximum(values, 0.0) + epsilon)
    matrix: NDArray[np.float64] = scaled @ vectors.T
    return matrix


@dataclass(frozen=True)
class _StandardizedBlocks:
    """The rows of a column in blocks `(n, F)`, float64, standardised as in training."""

    dataset: Dataset
    column: str
    standardization: Standardization | None

    def __iter__(self) -> Any:
        described = self.dataset.column(self.column)
        for first in range(0, len(self.dataset), _BLOCK):
            numbers = np.arange(first, min(first + _BLOCK, len(self.dataset)))
            raw = np.empty((len(numbers), *described.shape), described.dtype)
            self.dataset.gather(self.column, numbers, raw)
            scaled = np.empty(raw.shape, np.float32)
            if self.standardization is None:
                scaled[...] = raw
            else:
                self.standardization.apply(raw, scaled)
            yield scaled.reshape(len(numbers), -1).astype(np.float64)


def _features(rows: NDArray[Any]) -> int:
    return int(np.prod(rows.shape[1:]))


@compiled
def _standardize_each(
    rows: NDArray[np.float32], counts: NDArray[np.int64], divided: bool, out: NDArray[np.float32]
) -> None:
    for sample in range(len(rows)):
        length = counts[sample]
        if not length:
            continue
        mean = 0.0
        for place in range(length):
            mean += rows[sample, place]
        mean /= length
        square = 0.0
        for place in range(length):
            square += (rows[sample, place] - mean) ** 2
        scale = 1.0 / (np.sqrt(square / length) + 1e-6) if divided else 1.0
        for place in range(length):
            out[sample, place] = (rows[sample, place] - mean) * scale


_TILE = 512
"""Columns of the matrix that are taken at once: four rows of so many fit the first cache."""


@compiled
def _multiply(
    rows: NDArray[np.float32], matrix: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Adds `rows @ matrix` to `out`, every sum in the order of the features."""
    count, length = rows.shape
    fours = length - length % 4
    for start in range(0, length, _TILE):
        stop = min(start + _TILE, length)
        for k in range(0, fours, 4):
            first, second = matrix[k, start:stop], matrix[k + 1, start:stop]
            third, fourth = matrix[k + 2, start:stop], matrix[k + 3, start:stop]
            for sample in range(count):
                a, b = rows[sample, k], rows[sample, k + 1]
                c, d = rows[sample, k + 2], rows[sample, k + 3]
                _add_four(first, second, third, fourth, a, b, c, d, out[sample, start:stop])
        for k in range(fours, length):
            for sample in range(count):
                for j in range(start, stop):
                    out[sample, j] += rows[sample, k] * matrix[k, j]


@compiled
def _add_four(
    first: NDArray[np.float32],
    second: NDArray[np.float32],
    third: NDArray[np.float32],
    fourth: NDArray[np.float32],
    a: Any,
    b: Any,
    c: Any,
    d: Any,
    out: NDArray[np.float32],
) -> None:
    """One after another, with a single pass over `out`."""
    for j in range(len(out)):
        out[j] = (((out[j] + a * first[j]) + b * second[j]) + c * third[j]) + d * fourth[j]
