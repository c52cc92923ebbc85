"""What a loader asks of those who call it, and does for them."""

import numpy as np
import pytest

from data_pipeline import Dataset, Loader
from data_pipeline.augment import Draw, RandomResizedCrop, Rescale, Resize, Samples, ZCAWhitening
from data_pipeline.recipe import training_transforms


def test_what_may_look_at_other_samples_needs_a_micro_batch_beside_other_workers() -> None:
    data = Dataset.from_arrays({"x": np.zeros((12, 2), np.float32)})

    def mine(samples: Samples, draw: Draw) -> None:
        pass

    with pytest.raises(ValueError, match=r"mine may look at all .* give micro_batch"):
        Loader(data, 4, transforms=[mine], rank=0, world_size=2)
    assert len(Loader(data, 4, transforms=[mine], rank=0, world_size=2, micro_batch=2)) == 3


def test_whitening_is_fitted_to_what_the_loader_gives() -> None:
    rows = np.random.default_rng(0).normal(5.0, 3.0, (400, 4)).astype(np.float32)
    rows[:, 1] += rows[:, 0]
    with Loader(Dataset.from_arrays({"x": rows}), 400, transforms=[ZCAWhitening()]) as loader:
        white = next(iter(loader))["x"].double().numpy()
    assert np.allclose(np.cov(white.T, bias=True), np.eye(4), atol=1e-3)


def test_another_device_gets_the_batch_itself() -> None:
    data = Dataset.from_arrays({"x": np.zeros((4, 2), np.float32)})
    with Loader(data, 4, device="meta") as loader:
        assert next(iter(loader))["x"].device.type == "meta"


def test_a_crop_for_training_takes_the_place_of_the_one_for_all_and_the_rest_stays() -> None:
    crop, size, rescale = RandomResizedCrop(8, 8), Resize(8, 8), Rescale(2.0)
    assert training_transforms([size, rescale], [crop]) == (crop, rescale)
    assert training_transforms([rescale], [crop]) == (rescale, crop)
    assert training_transforms([size], [rescale]) == (size, rescale)
