"""A short program that loads exported weights, with torch and safetensors alone."""

import torch
from torch import nn

from data_pipeline.standardize import Standardization
from distrain.learn.models import OneNumber
from distrain.practice.job_model import JobModel

_ANY_MODEL = '''\
"""Loads {described}: needs torch and safetensors."""

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_name({file!r})


def load(model: nn.Module) -> nn.Module:
    """Sets the weights of a model built as it was for the run, ready for use."""
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()
'''

_THIS_MODEL = '''\
"""Loads {described}: needs torch and safetensors."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_name({file!r})
{scaling}

def build() -> nn.Module:
    """The model: from {dtype} inputs {shape}."""
    return {model}


def load() -> nn.Module:
    """The model with its weights, ready for use."""
    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()
'''

_SCALING = '''
SCALE = torch.tensor({scale})
OFFSET = torch.tensor({offset})


def scaled(raw: torch.Tensor) -> torch.Tensor:
    """Inputs {shape} from raw values{prepared}, as the run has scaled them."""
    return raw.float() * SCALE{reshape} + OFFSET{reshape}
'''


def snippet(file: str, described: str, model: JobModel | None) -> str:
    """The program's text, for weights in `file`, which stands beside it.

    `described` says which weights they are. Where one of `distrain.learn.models` is given, the
    program builds it, and scales what it is fed with; else it takes a model.
    """
    if model is None:
        return _ANY_MODEL.format(file=file, described=described)
    return _THIS_MODEL.format(
        file=file,
        described=described,
        scaling=_scaling(model, model.scaling),
        dtype=str(model.inputs.dtype).removeprefix("torch."),
        shape=_shape(model.inputs),
        model=source_of(model.build()),
    )


def source_of(model: nn.Module) -> str:
    """The expression that builds one of `distrain.learn.models`, in torch's own modules.

    torch writes each of their layers as the call that makes it; a bias is every layer's default,
    and older versions don't know the word for norms.
    """
    assert type(model) is nn.Sequential
    layers = [
        # (B, 1) to (B,) is all that this one does.
        "nn.Flatten(start_dim=0)"
        if isinstance(layer, OneNumber)
        else f"nn.{layer!r}".replace(", bias=True", "")
        for layer in model
    ]
    return "\n".join(["nn.Sequential(", *(f"        {layer}," for layer in layers), "    )"])


def _shape(inputs: torch.Tensor) -> str:
    return f"({', '.join(['B', *map(str, inputs.shape[1:])])})"


def _scaling(model: JobModel, scaling: Standardization | None) -> str:
    if scaling is None:
        return ""
    behind = model.inputs.dim() - 1 - (scaling.axis or 0)
    return _SCALING.format(
        scale=_numbers(scaling.scale.tolist()),
        offset=_numbers(scaling.offset.tolist()),
        shape=_shape(model.inputs),
        prepared=" (after the transforms of [data.prepare])" if model.is_prepared else "",
        reshape=f".reshape(-1{', 1' * behind})" if scaling.axis is not None and behind else "",
    )


def _numbers(values: list[float]) -> str:
    """Eight to a line; nine digits give a float32 back bit for bit."""
    texts = [f"{value:.9g}" for value in values]
    if len(texts) <= 4:
        return f"[{', '.join(texts)}]"
    lines = [", ".join(texts[start : start + 4]) + "," for start in range(0, len(texts), 4)]
    return "\n".join(["[", *(f"    {line}" for line in lines), "]"])
