"""A model with its weights as one ONNX file, by torch's own exporter."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from distrain.errors import ConfigError, UsageError

MOST_BYTES = 2_000_000_000
"""A protobuf message holds no more."""


def onnx_bytes(model: nn.Module, inputs: torch.Tensor, input_name: str) -> bytes:
    """The model in evaluation mode as an ONNX file's bytes; the batch may have any size.

    Args:
        model: On the host.
        inputs: An example, `(2, *shape)`.
        input_name: What its input is called; the output is `outputs`.

    Raises:
        UsageError: the packages that it takes are missing.
        ConfigError: torch can't export the model, or it is too large for a file.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UsageError(f"ONNX needs {' and '.join(missing)}: pip install 'distrain[onnx]'")
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if size > MOST_BYTES:
        raise ConfigError(
            f"the model has {size:,} bytes, and an ONNX file holds {MOST_BYTES:,}: export "
            "safetensors"
        )
    try:
        with _quiet():
            program = torch.onnx.export(
                model.eval(),
                (inputs,),
                dynamo=True,
                input_names=[input_name],
                output_names=["outputs"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
    except Exception as error:  # its errors have no common type but this
        cause = error.__cause__ or error
        first = str(cause).strip().partition("\n")[0]
        raise ConfigError(
            f"torch can't export this model to ONNX: {type(cause).__name__}: {first}"
        ) from error
    assert program is not None
    encoded: bytes = program.model_proto.SerializeToString()
    return encoded


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporter says of its own insides is no news to whoever exports."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
