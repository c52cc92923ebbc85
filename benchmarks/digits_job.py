"""The one job that all variants of `step_overhead` train, and proof that a variant does train it.

A small CNN on digits, `PER_WORKER` samples a worker and step, SGD with momentum, clipping by norm.
An epoch's samples that fill no batch of all workers are left out.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from data_pipeline import Dataset
from distrain.parallel.world import World

PER_WORKER = 64
CLIP_NORM = 1.0
LR = 0.05
MOMENTUM = 0.9


@dataclass(frozen=True)
class Trained:
    """What a variant says that it has done.

    Attributes:
        samples: Seen by all workers together.
        model: With the weights that were learned.
    """

    samples: int
    model: nn.Module


Training = Callable[[], Trained]
"""Trains the model that was set up: what the clock runs for."""

Variant = Callable[[int], Training]
"""Sets up a new model, and all that its training for some epochs needs."""

MakeVariant = Callable[[Dataset, int], Variant]
"""Prepares the data for a world size."""


def build_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def fused_sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer in its fastest form."""
    return torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, fused=True)


def tensors(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All images `(N, 1, 8, 8)`, standardised, float32, and labels `(N,)`, int64."""
    rows = np.arange(len(data))
    images, labels = np.empty((len(data), 1, 8, 8), np.uint8), np.empty(len(data), np.int64)
    data.gather("image", rows, images)
    data.gather("label", rows, labels)
    scaled = (images - images.mean()) / images.std()
    return torch.from_numpy(scaled.astype(np.float32)), torch.from_numpy(labels)


def mean_loss(model: nn.Module, data: Dataset) -> float:
    """The loss over all of the data."""
    images, labels = tensors(data)
    with torch.no_grad():
        return nn.functional.cross_entropy(model(images), labels).item()


@contextmanager
def counted_samples() -> Iterator[list[int]]:
    """Counts in its one element the samples that any `build_net()` of this process is trained on.

    Counted where they pass through the model, so that no variant's own count is relied on.
    """
    count = [0]

    def count_rows(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if type(module) is nn.Flatten and module.training and torch.is_grad_enabled():
            count[0] += len(inputs[0])

    handle = register_module_forward_pre_hook(count_rows)
    try:
        yield count
    finally:
        handle.remove()


def prove(name: str, prepare: Variant, epochs: int, data: Dataset, world: World) -> float:
    """Trains once, unmeasured, and returns the loss that is reached; the same on every worker.

    Raises:
        RuntimeError: the variant counts other samples than pass through its model, leaves out
            more than a batch of them an epoch, or has learned nothing.
    """
    with counted_samples() as here:
        trained = prepare(epochs)()
    everywhere = int(world.communicator.all_gather(torch.tensor(here)).sum().item())
    batch = PER_WORKER * world.size
    wanted = epochs * (len(data) // batch) * batch
    if not trained.samples == everywhere == wanted:
        raise RuntimeError(
            f"{name} says that it trained on {trained.samples} samples; {everywhere} passed "
            f"through its model, and {wanted} make {epochs} epochs"
        )
    before, after = mean_loss(build_net(), data), mean_loss(trained.model, data)
    losses = world.communicator.all_gather(torch.tensor([after], dtype=torch.float64)).flatten()
    if not losses.max() < 0.9 * before:
        raise RuntimeError(
            f"{name} learns nothing: its loss is {after:.3f}, untrained {before:.3f}"
        )
    if not torch.equal(losses, losses[0].expand_as(losses)):
        raise RuntimeError(f"{name} has other weights on each worker: losses {losses.tolist()}")
    return after
