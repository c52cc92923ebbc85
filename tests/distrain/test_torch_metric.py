"""Metrics of torchmetrics: their names, and which way is better."""

import pytest
import torch
import torchmetrics

from data_pipeline import Dataset
from distrain.coordinator.early_stopping import EarlyStopping
from distrain.coordinator.metrics import MetricSet
from distrain.coordinator.torch_metric import TorchMetric
from distrain.errors import ConfigError
from distrain.validation import ValidationSets


def kappa() -> torchmetrics.Metric:
    return torchmetrics.CohenKappa(task="binary")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("accuracy", "'accuracy' is a metric of distrain's already"),
        ("top_3", "is a metric of distrain's already"),
        ("loss", "'loss' is taken"),
        ("val_kappa", "'val_kappa' is taken"),
        ("my kappa", "'my kappa' is no name such as cohen_kappa"),
    ],
)
def test_a_name_that_is_taken_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TorchMetric(name, kappa)


def test_torchmetrics_says_which_way_is_better_unless_the_user_does() -> None:
    assert TorchMetric("kappa", kappa).direction() is False
    assert TorchMetric("error", torchmetrics.MeanAbsoluteError).direction() is True
    assert TorchMetric("kappa", kappa, less_is_better=True).direction() is True
    assert TorchMetric("mean", torchmetrics.MeanMetric).direction() is None


def test_a_rule_that_nobody_gives_a_direction_is_refused_with_the_way_out() -> None:
    data = Dataset.from_arrays({"x": torch.zeros(3).numpy()})
    metrics = MetricSet((TorchMetric("mean", torchmetrics.MeanMetric), TorchMetric("kappa", kappa)))
    known = ValidationSets({"day": data}).directions(metrics)
    assert known == {
        "loss": True,
        "val_day_loss": True,
        "val_day_mean": None,
        "val_day_kappa": False,
    }
    assert EarlyStopping("val_day_kappa").settled(known).mode == "max"
    assert EarlyStopping("val_day_mean", mode="min").settled(known).mode == "min"
    with pytest.raises(ConfigError, match='give mode "min" or "max", or TorchMetric'):
        EarlyStopping("val_day_mean").settled(known)
    for name in ("kappa", "val_kappa"):
        with pytest.raises(ConfigError, match="on validation sets it measures val_day_kappa"):
            EarlyStopping(name).settled(known)
