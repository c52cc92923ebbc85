"""Synchronous data-parallel training in PyTorch, with one result at any number of workers.

Names are loaded when they are first used, so that `launch` can check a job without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distrain.bad_numbers import BadNumbers
    from distrain.coordinator.checkpointing import Checkpoint
    from distrain.coordinator.early_stopping import EarlyStopping
    from distrain.coordinator.history import History
    from distrain.coordinator.observers import EpochRecord
    from distrain.coordinator.plateau import Plateau
    from distrain.coordinator.torch_metric import TorchMetric
    from distrain.learn import schedules
    from distrain.learn.averaging import ExponentialAverage, StochasticAverage
    from distrain.learn.losses import mean_over_samples
    from distrain.learn.parameter_groups import ParameterGroup
    from distrain.trainer import Trainer

_HOMES = {
    "BadNumbers": "distrain.bad_numbers",
    "Checkpoint": "distrain.coordinator.checkpointing",
    "EarlyStopping": "distrain.coordinator.early_stopping",
    "EpochRecord": "distrain.coordinator.observers",
    "ExponentialAverage": "distrain.learn.averaging",
    "History": "distrain.coordinator.recording",
    "ParameterGroup": "distrain.learn.parameter_groups",
    "Plateau": "distrain.coordinator.plateau",
    "StochasticAverage": "distrain.learn.averaging",
    "TorchMetric": "distrain.coordinator.torch_metric",
    "Trainer": "distrain.trainer",
    "mean_over_samples": "distrain.learn.losses",
}

__all__ = [
    "BadNumbers",
    "Checkpoint",
    "EarlyStopping",
    "EpochRecord",
    "ExponentialAverage",
    "History",
    "ParameterGroup",
    "Plateau",
    "StochasticAverage",
    "TorchMetric",
    "Trainer",
    "mean_over_samples",
    "schedules",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports a public name's module."""
    if name == "schedules":
        return import_module("distrain.learn.schedules")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'distrain' has no attribute {name!r}")
