"""What the workers' fork server has imported before a worker is wanted.

A worker needs 2 to 3 s to import torch and what goes with it, and one more to load the data
pipeline's compiled loops; forked from a process that has done so it needs a few milliseconds, at
the first start and at each restart.

Importing starts no thread and touches no device, so that forking is safe.
"""

import numpy as np
import torch._dynamo  # what the first optimizer would import: 1 s

import distrain.run_job
from data_pipeline.batches import BatchBuilder
from data_pipeline.dataset import Dataset
from data_pipeline.heads import Span
from data_pipeline.recipe import Recipe
from data_pipeline.standardize import standardization

__all__ = ["distrain", "torch"]


def _load_loops() -> None:
    """Has a batch made of the most usual kinds of inputs: bytes of images, floats of tables."""
    images, features = np.zeros((2, 1, 8, 8), np.uint8), np.zeros((2, 4), np.float32)
    dataset = Dataset.from_arrays({"image": images, "features": features})
    names = tuple(dataset.columns)
    scalings = {name: standardization(dataset, name, scaled=True) for name in names}
    known = {name: scaling for name, scaling in scalings.items() if scaling is not None}
    recipe = Recipe(columns=names, sampling="shuffled", inputs="image", standardized=known)
    builder, span = BatchBuilder(dataset, recipe), Span(0, 0, 2)
    builder.build(span, recipe.sampled(dataset).rows(0, 0, 2), builder.buffers(2))


_load_loops()
