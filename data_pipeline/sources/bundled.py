"""The real data sets that scikit-learn carries, split into a training and a validation part."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import datasets as sklearn_datasets
from sklearn.model_selection import train_test_split

from data_pipeline.errors import DataError
from data_pipeline.manifest import Column, Manifest
from data_pipeline.writer import write_dataset

TARGET_BINS = 10
"""A regression target is stratified by its deciles."""


@dataclass(frozen=True)
class _Table:
    columns: tuple[Column, ...]
    arrays: dict[str, NDArray[Any]]
    strata: NDArray[np.int64]


def _classification(load: Callable[[], Any]) -> _Table:
    bunch = load()
    labels = bunch.target.astype(np.int64)
    classes = tuple(str(name) for name in bunch.target_names)
    features = bunch.data.astype(np.float32)
    columns = (
        Column(name="features", kind="tensor", dtype="float32", shape=features.shape[1:]),
        Column(name="label", kind="label", dtype="int64", classes=classes),
    )
    return _Table(columns, {"features": features, "label": labels}, labels)


def _digits() -> _Table:
    bunch = sklearn_datasets.load_digits()
    labels = bunch.target.astype(np.int64)
    columns = (
        Column(name="image", kind="tensor", dtype="uint8", shape=(1, 8, 8)),
        Column(
            name="label",
            kind="label",
            dtype="int64",
            classes=tuple(str(name) for name in bunch.target_names),
        ),
    )
    # Grey values are whole numbers from 0 to 16.
    arrays = {"image": bunch.images.astype(np.uint8)[:, None], "label": labels}
    return _Table(columns, arrays, labels)


def _diabetes() -> _Table:
    bunch = sklearn_datasets.load_diabetes(scaled=False)
    features, target = bunch.data.astype(np.float32), bunch.target.astype(np.float32)
    columns = (
        Column(name="features", kind="tensor", dtype="float32", shape=features.shape[1:]),
        Column(name="target", kind="number", dtype="float32"),
    )
    edges = np.quantile(target, np.linspace(0, 1, TARGET_BINS + 1)[1:-1])
    strata = np.searchsorted(edges, target).astype(np.int64)
    return _Table(columns, {"features": features, "target": target}, strata)


_LOADERS: dict[str, Callable[[], _Table]] = {
    "iris": lambda: _classification(sklearn_datasets.load_iris),
    "wine": lambda: _classification(sklearn_datasets.load_wine),
    "breast_cancer": lambda: _classification(sklearn_datasets.load_breast_cancer),
    "diabetes": _diabetes,
    "digits": _digits,
}


def make_bundled(
    name: str,
    folder: str | Path,
    *,
    validation_fraction: float = 0.2,
    seed: int = 0,
    rows_per_shard: int | None = None,
) -> Manifest:
    """Writes one of scikit-learn's bundled sets as parts `train` and `validation`.

    The split is stratified by class (by deciles of the target for diabetes) and depends on `seed`
    alone; within a part the rows keep their order.

    Raises:
        DataError: the name is unknown, the fraction is not usable, or the folder exists.
    """
    if name not in _LOADERS:
        raise DataError(f"no bundled data set is called {name!r}; there are {', '.join(_LOADERS)}")
    if not 0.0 < validation_fraction < 1.0:
        raise DataError(f"the validation fraction is {validation_fraction}; give one within (0, 1)")
    if not 0 <= seed < 2**32:
        raise DataError(f"the seed of the split is {seed}; give one within [0, 2**32)")
    table = _LOADERS[name]()
    try:
        chosen = train_test_split(
            np.arange(len(table.strata)),
            test_size=validation_fraction,
            stratify=table.strata,
            random_state=seed,
        )
    except ValueError as error:
        raise DataError(
            f"{name} cannot be split with a validation fraction of {validation_fraction}: {error}"
        ) from error
    parts = {
        part: {key: values[np.sort(rows)] for key, values in table.arrays.items()}
        for part, rows in zip(("train", "validation"), chosen, strict=True)
    }
    return write_dataset(folder, name, table.columns, parts, rows_per_shard=rows_per_shard)
