"""From files to minibatches: verified Arrow shards, a computed order, keyed augmentation.

The package knows nothing of training; ranks and world sizes come as arguments. A public name is
imported when it is first asked for: data sets are made and checked without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_pipeline import augment
    from data_pipeline.conversion.convert import convert
    from data_pipeline.conversion.rows import write
    from data_pipeline.dataset import Dataset
    from data_pipeline.errors import DataError, LostProcessError, StorageError
    from data_pipeline.loader import Loader
    from data_pipeline.manifest import Column
    from data_pipeline.ragged import Ragged
    from data_pipeline.sources.source import Reading
    from data_pipeline.writer import write_dataset

_HOMES = {
    "Column": "data_pipeline.manifest",
    "DataError": "data_pipeline.errors",
    "Dataset": "data_pipeline.dataset",
    "Loader": "data_pipeline.loader",
    "LostProcessError": "data_pipeline.errors",
    "Ragged": "data_pipeline.ragged",
    "Reading": "data_pipeline.sources.source",
    "StorageError": "data_pipeline.errors",
    "convert": "data_pipeline.conversion.convert",
    "write": "data_pipeline.conversion.rows",
    "write_dataset": "data_pipeline.writer",
}

__all__ = [
    "Column",
    "DataError",
    "Dataset",
    "Loader",
    "LostProcessError",
    "Ragged",
    "Reading",
    "StorageError",
    "augment",
    "convert",
    "write",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    """Imports a public name's module."""
    if name == "augment":
        return import_module("data_pipeline.augment")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
