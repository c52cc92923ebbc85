"""What a training part says of its columns: counts, means, standard deviations, label counts."""

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column, ColumnStatistics


def column_statistics(column: Column, rows: NDArray[np.generic]) -> ColumnStatistics:
    """Statistics of rows `(N, *column.shape)`, taken in float64.

    Raises:
        DataError: a value is not finite, or a label lies outside of the column's classes.
    """
    if column.kind == "label":
        labels = rows.astype(np.int64)
        if labels.size and (labels.min() < 0 or labels.max() >= len(column.classes)):
            raise DataError(
                f"column {column.name!r} has labels from {labels.min()} to {labels.max()}, but "
                f"{len(column.classes)} classes: labels must lie in [0, {len(column.classes)})"
            )
        counts = np.bincount(labels, minlength=len(column.classes))
        return ColumnStatistics(count=len(rows), label_counts=tuple(counts.tolist()))
    if not len(rows):
        return ColumnStatistics(count=0)
    values = rows.astype(np.float64)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        raise DataError(f"column {column.name!r} has NaN or infinity in rows {bad[:5].tolist()}")
    axes = statistics_axes(column.shape)
    mean, std = values.mean(axis=axes), values.std(axis=axes)
    # Rounding in the mean leaves a constant feature a std of 1e-17; nothing can be divided by it.
    lowest = values.min(axis=axes)
    constant = lowest == values.max(axis=axes)
    mean, std = np.where(constant, lowest, mean), np.where(constant, 0.0, std)
    return ColumnStatistics(
        count=len(rows),
        mean=tuple(np.atleast_1d(mean).tolist()),
        std=tuple(np.atleast_1d(std).tolist()),
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
