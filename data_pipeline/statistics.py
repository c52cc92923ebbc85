"""What a training part says of its columns, taken block by block in one pass.

Blocks are put together by the formula of Chan, Golub and LeVeque (1983), "Algorithms for computing
the sample variance": of counts n, means m and sums of squared deviations M2,

    n = n_a + n_b,   d = m_b - m_a,   m = m_a + d n_b / n,   M2 = M2_a + M2_b + d^2 n_a n_b / n,

which loses nothing where the mean is large beside the deviation. The result depends on where the
blocks are cut and on their order, so these must not depend on who computes them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column, ColumnStatistics
from data_pipeline.ragged import Ragged

_VALUES_AT_ONCE = 2**22
"""So many values are turned into float64 at a time: 32 MiB."""


@dataclass(frozen=True)
class Moments:
    """What some rows of a column say; each array has an entry a feature, or one in all.

    Attributes:
        rows: How many rows there were.
        count: Values that are numbers.
        mean: Theirs; 0 where there is none.
        m2: The sum of their squared deviations from the mean.
        least: The smallest; infinity where there is none.
        greatest: The largest; minus infinity where there is none.
        label_counts: Of a label, the rows of each class.
        missing: Values that are NaN.
    """

    rows: int
    count: NDArray[np.int64]
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]
    least: NDArray[np.float64]
    greatest: NDArray[np.float64]
    label_counts: NDArray[np.int64]
    missing: int = 0

    @classmethod
    def nothing(cls, column: Column) -> "Moments":
        """Those of no rows."""
        axis = statistics_axis(column.shape)
        width = 1 if axis is None else column.shape[axis - 1]
        if column.kind in ("label", "text"):
            width = 0
        classes = len(column.classes) if column.kind == "label" else 0
        zeros = np.zeros(width)
        return cls(
            rows=0,
            count=np.zeros(width, np.int64),
            mean=zeros,
            m2=zeros,
            least=np.full(width, np.inf),
            greatest=np.full(width, -np.inf),
            label_counts=np.zeros(classes, np.int64),
        )

    def merge(self, other: "Moments") -> "Moments":
        """Those of these rows and the others together."""
        count = self.count + other.count
        some = np.maximum(count, 1)
        between = other.mean - self.mean
        both = (self.count > 0) & (other.count > 0)
        mean = np.where(both, self.mean + between * (other.count / some), self.mean + other.mean)
        spread = between * between * (self.count / some) * other.count
        return Moments(
            rows=self.rows + other.rows,
            count=count,
            mean=mean,
            m2=self.m2 + other.m2 + np.where(both, spread, 0.0),
            least=np.minimum(self.least, other.least),
            greatest=np.maximum(self.greatest, other.greatest),
            label_counts=self.label_counts + other.label_counts,
            missing=self.missing + other.missing,
        )

    def statistics(self, column: Column) -> ColumnStatistics:
        """What stands in the manifest.

        Raises:
            DataError: a feature has no value at all.
        """
        if not self.rows or not len(self.count):
            return ColumnStatistics(count=self.rows, label_counts=tuple(self.label_counts.tolist()))
        if not self.count.all():
            if column.kind == "sequence":  # all of them are empty
                return ColumnStatistics(count=self.rows, missing=self.missing)
            raise DataError(
                f"column {column.name!r} has not a single value in the training part, all are "
                "missing: leave the column out"
            )
        # Rounding in the mean leaves a constant feature a std of 1e-17; nothing can be divided by
        # it.
        constant = self.least == self.greatest
        mean = np.where(constant, self.least, self.mean)
        std = np.where(constant, 0.0, np.sqrt(self.m2 / self.count))
        return ColumnStatistics(
            count=self.rows,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            least=tuple(self.least.tolist()),
            greatest=tuple(self.greatest.tolist()),
            missing=self.missing,
        )


def column_statistics(
    column: Column, rows: NDArray[Any] | Ragged, *, missing_allowed: bool = False
) -> ColumnStatistics:
    """Statistics of rows `(N, *column.shape)`, or of ragged ones, taken in float64.

    Raises:
        DataError: a value is not finite (NaN may be allowed), a label lies outside of the column's
            classes, or a picture cannot be decoded.
    """
    return moments(column, rows, missing_allowed=missing_allowed).statistics(column)


def moments(
    column: Column, rows: NDArray[Any] | Ragged, *, missing_allowed: bool = False
) -> Moments:
    """The moments of some rows, taken in float64.

    Raises:
        DataError: as `column_statistics`.
    """
    found = Moments.nothing(column)
    if column.kind == "label":
        assert not isinstance(rows, Ragged)
        return _with_rows(found, len(rows), _label_counts(column, rows))
    if column.kind == "text":
        return _with_rows(found, len(rows))
    if column.kind == "image":
        assert isinstance(rows, Ragged)
        return _of_histogram(len(rows), _picture_histogram(column, rows))
    check_finite(column, rows, missing_allowed=missing_allowed)
    values = rows.values if isinstance(rows, Ragged) else rows
    for chunk in _chunks(values):
        found = found.merge(_of_values(column, chunk))
    return _with_rows(found, len(rows))


def check_finite(
    column: Column,
    rows: NDArray[Any] | Ragged,
    *,
    missing_allowed: bool,
    origin: Callable[[int], str] | None = None,
) -> None:
    """Refuses infinity, and NaN where it is not allowed.

    Raises:
        DataError: with the rows at fault; `origin` says where a row comes from.
    """
    values = rows.values if isinstance(rows, Ragged) else rows
    if values.dtype.kind != "f":
        return
    start = 0
    for chunk in _chunks(values):
        wrong = ~np.isfinite(chunk)
        if missing_allowed:
            wrong &= ~np.isnan(chunk)
        if wrong.any():
            places = start + np.flatnonzero(wrong.reshape(len(chunk), -1).any(axis=1))
            if isinstance(rows, Ragged):
                places = np.unique(np.searchsorted(rows.offsets, places, side="right") - 1)
            what = "infinity" if missing_allowed else "NaN or infinity"
            if origin is None:
                raise DataError(f"column {column.name!r} has {what} in rows {places[:5].tolist()}")
            named = ", ".join(origin(int(place)) for place in places[:3])
            way = "" if missing_allowed else "; a missing value (NaN) is kept with --missing keep"
            raise DataError(f"column {column.name!r} has {what} in {named}{way}")
        start += len(chunk)


def check_labels(column: Column, labels: NDArray[Any]) -> None:
    """Refuses labels outside of the classes.

    Raises:
        DataError: with the least and the greatest.
    """
    if labels.size and (labels.min() < 0 or labels.max() >= len(column.classes)):
        raise DataError(
            f"column {column.name!r} has labels from {labels.min()} to {labels.max()}, but "
            f"{len(column.classes)} classes: labels must lie in [0, {len(column.classes)})"
        )


def _label_counts(column: Column, rows: NDArray[Any]) -> NDArray[np.int64]:
    labels = rows.astype(np.int64)
    check_labels(column, labels)
    return np.bincount(labels, minlength=len(column.classes)).astype(np.int64)


def _with_rows(found: Moments, rows: int, label_counts: NDArray[np.int64] | None = None) -> Moments:
    return Moments(
        rows=rows,
        count=found.count,
        mean=found.mean,
        m2=found.m2,
        least=found.least,
        greatest=found.greatest,
        label_counts=found.label_counts if label_counts is None else label_counts,
        missing=found.missing,
    )


def _chunks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    each = max(1, int(np.prod(values.shape[1:], dtype=np.int64)))
    step = max(1, _VALUES_AT_ONCE // each)
    for start in range(0, len(values), step):
        yield values[start : start + step]


def _of_values(column: Column, rows: NDArray[Any]) -> Moments:
    """Two passes over values that fit into memory: the mean first, then the deviations from it."""
    axes = statistics_axes(column.shape)
    values = rows.astype(np.float64)
    gone = np.isnan(values)
    missing = int(gone.sum())
    count = np.atleast_1d((~gone).sum(axis=axes)).astype(np.int64)
    if missing:
        filled = np.where(gone, 0.0, values)
        mean = np.atleast_1d(filled.sum(axis=axes)) / np.maximum(count, 1)
    else:
        mean = np.atleast_1d(values.mean(axis=axes))
    shape = [1] * values.ndim
    axis = statistics_axis(column.shape)
    if axis is not None:
        shape[axis] = -1
    deviations = values - mean.reshape(shape)
    if missing:
        deviations[gone] = 0.0
    return Moments(
        rows=len(rows),
        count=count,
        mean=mean,
        m2=np.atleast_1d((deviations * deviations).sum(axis=axes)),
        least=np.atleast_1d(np.where(gone, np.inf, values).min(axis=axes)),
        greatest=np.atleast_1d(np.where(gone, -np.inf, values).max(axis=axes)),
        label_counts=np.zeros(0, np.int64),
        missing=missing,
    )


def _picture_histogram(column: Column, rows: Ragged) -> NDArray[np.int64]:
    """How often each of 256 values stands in each channel, `(C, 256)`."""
    from data_pipeline.images import decode_jpeg_or_png  # noqa: PLC0415 - an optional library

    channels = column.shape[0]
    found = np.zeros((channels, 256), np.int64)
    for number in range(len(rows)):
        pixels = decode_jpeg_or_png(rows.row(number).data, channels=channels)
        for channel in range(channels):
            found[channel] += np.bincount(pixels[..., channel].reshape(-1), minlength=256)
    return found


def _of_histogram(rows: int, histogram: NDArray[np.int64]) -> Moments:
    values = np.arange(256, dtype=np.float64)
    count = histogram.sum(axis=1)
    mean = (histogram @ values) / np.maximum(count, 1)
    m2 = (histogram * (values - mean[:, None]) ** 2).sum(axis=1)
    there = histogram > 0
    return Moments(
        rows=rows,
        count=count,
        mean=mean,
        m2=m2,
        least=np.where(there, values, np.inf).min(axis=1),
        greatest=np.where(there, values, -np.inf).max(axis=1),
        label_counts=np.zeros(0, np.int64),
    )


def statistics_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of `(N, *shape)` to average over: all but the channel, or else the last one."""
    kept = statistics_axis(shape)
    return tuple(axis for axis in range(len(shape) + 1) if axis != kept)


def statistics_axis(shape: tuple[int, ...]) -> int | None:
    """The axis of `(N, *shape)` that has statistics of its own: C of (C, H, W), else the last."""
    if not shape:
        return None
    return 1 if len(shape) == 3 else len(shape)
