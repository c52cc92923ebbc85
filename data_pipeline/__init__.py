"""From files to minibatches: verified Arrow shards, a computed order, keyed augmentation.

The package knows nothing of training; ranks and world sizes come as arguments.
"""

from data_pipeline import augment
from data_pipeline.dataset import Dataset
from data_pipeline.errors import DataError, StorageError
from data_pipeline.writer import write_dataset

__all__ = ["DataError", "Dataset", "StorageError", "augment", "write_dataset"]
