"""Small models that a job file can name; any other is named as PACKAGE.MODULE:FUNCTION."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from distrain.errors import ConfigError

Activation = Literal["relu", "tanh", "sigmoid", "gelu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
}


class OneNumber(nn.Module):
    """From `(B, 1)` to `(B,)`: the shape of a target with one number a sample."""

    def forward(self, outputs: torch.Tensor) -> torch.Tensor:
        """Drops the last dimension."""
        return outputs.squeeze(-1)


def mlp(
    input_shape: Sequence[int],
    num_outputs: int | None,
    *,
    hidden: Sequence[int] = (16,),
    activation: Activation = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
) -> nn.Module:
    """A fully connected net: from `(B, *input_shape)` to `(B, num_outputs)` logits.

    With `num_outputs` None the output is one number a sample, `(B,)`.
    """
    sizes = [int(torch.Size(input_shape).numel()), *hidden]
    layers: list[nn.Module] = [nn.Flatten() if input_shape else nn.Unflatten(0, (-1, 1))]
    for before, after in pairwise(sizes):
        layers.append(nn.Linear(before, after))
        if batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(_activation(activation))
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, *_head(sizes[-1], num_outputs))


def cnn(
    input_shape: Sequence[int],
    num_outputs: int | None,
    *,
    channels: Sequence[int] = (32, 64),
    hidden: int = 128,
    dropout: float = 0.25,
    batch_norm: bool = True,
) -> nn.Module:
    """Convolutions of 3x3, each halving the image, then one hidden layer: `(B, C, H, W)` to logits.

    With `num_outputs` None the output is one number a sample, `(B,)`.

    Raises:
        ConfigError: the inputs are no images, or too small to be halved so often.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f"cnn wants images (C, H, W), but the inputs have shape {tuple(input_shape)}: "
            'use model.build = "mlp"'
        )
    before, height, width = input_shape
    if min(height, width) >> len(channels) < 1:
        raise ConfigError(
            f"images of {height}x{width} can't be halved {len(channels)} times: give "
            "model.options.channels fewer entries"
        )
    layers: list[nn.Module] = []
    for after in channels:
        layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        before, height, width = after, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(before * height * width, hidden), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, *_head(hidden, num_outputs))


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"there is no activation {name!r}; there are {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]()


def _head(size: int, num_outputs: int | None) -> list[nn.Module]:
    if num_outputs is None:
        return [nn.Linear(size, 1), OneNumber()]
    return [nn.Linear(size, num_outputs)]
