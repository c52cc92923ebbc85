"""How forward passes are computed: in which precision, memory layout and memory, compiled or not.

All of it is part of a run's identity; none of it knows how many workers there are.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from distrain.activation_checkpointing import checkpoint_activations, undo_checkpointing
from distrain.checks import near_names
from distrain.compilation import (
    check_batch_norm,
    check_compiler,
    compile_in_place,
    refuse_compiled,
    static_graphs,
    undo_compiling,
)
from distrain.config import PRECISIONS
from distrain.errors import ConfigError
from distrain.micro_batch import Columns, MicroBatchResult, MicroBatchStep

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_HALF = frozenset(_DTYPES.values())


@dataclass(frozen=True)
class Precision:
    """What a person has chosen.

    Attributes:
        dtype: float32; or bfloat16 or float16, in which autocast runs what can bear it. Weights,
            gradients and sums are float32 in any case.
        activation_checkpointing: Patterns of the names of submodules that are run again in the
            backward pass, instead of keeping what they have computed.
        compile: Whether the model is compiled.
        channels_last: Whether the model and its 4-D inputs are laid out with channels last.
    """

    dtype: str = "float32"
    activation_checkpointing: tuple[str, ...] = ()
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Checks what a job file's types have checked already."""
        if self.dtype not in PRECISIONS:
            known = near_names(str(self.dtype), PRECISIONS)
            raise ConfigError(f"precision is {self.dtype!r}, which is not known; {known}")
        if not isinstance(self.compile, bool):
            raise ConfigError(
                f"compile is {self.compile!r}; it is True or False: torch's other modes choose "
                "kernels by the time they take in a trial, or keep a GPU's graphs, and would not "
                "give the same bits again"
            )
        if not isinstance(self.channels_last, bool):
            raise ConfigError(f"channels_last is {self.channels_last!r}; it is True or False")

    @property
    def scales_loss(self) -> bool:
        """Whether gradients would vanish without a loss scale."""
        return self.dtype == "float16"

    def settings(self) -> dict[str, Any]:
        """Its part of a run's identity, as plain values."""
        return {
            "precision": self.dtype,
            "activation_checkpointing": list(self.activation_checkpointing),
            "compile": self.compile,
            "channels_last": self.channels_last,
        }

    def prepare(
        self, model: torch.nn.Module, device: torch.device, batch_norm: str = "micro"
    ) -> None:
        """Makes the model one that is computed so, in place.

        Raises:
            ConfigError: it can't be.
        """
        check_batch_norm(compile=self.compile, batch_norm=batch_norm)
        undo_checkpointing(model)
        undo_compiling(model)
        refuse_compiled(model)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        checkpoint_activations(model, self.activation_checkpointing)
        if self.compile:
            check_compiler(device)
            compile_in_place(model)

    def wrapped(self, run: MicroBatchStep, device: torch.device) -> MicroBatchStep:
        """What is done with a micro-batch, done so: training, evaluation and prediction alike.

        The loss sum and the outputs that it gives are float32.
        """
        dtype = _DTYPES.get(self.dtype)
        if dtype is None and not (self.compile or self.channels_last):
            return run

        def wrapped(model: torch.nn.Module, columns: Columns) -> MicroBatchResult:
            if self.channels_last:
                columns = {name: _channels_last(column) for name, column in columns.items()}
            with ExitStack() as stack:
                # Entered here, since these states belong to a thread.
                if dtype is not None:
                    # Without autocast's cache: all threads share it and each empties it, and
                    # whether two uses of a weight share a copy decides how gradients are rounded.
                    stack.enter_context(torch.autocast(device.type, dtype, cache_enabled=False))
                if self.compile:
                    stack.enter_context(static_graphs())
                result = run(model, columns)
            return result if dtype is None else _in_full(result)

        return wrapped


def make_precision(
    dtype: str,
    activation_checkpointing: Sequence[str],
    compile: bool,  # noqa: A002 - torch's own word
    channels_last: bool,
) -> Precision:
    """A trainer's arguments, checked.

    Raises:
        ConfigError: one of them is not as it must be.
    """
    if isinstance(activation_checkpointing, str):
        raise ConfigError(
            f"activation_checkpointing is the text {activation_checkpointing!r}; give a list: "
            f"[{activation_checkpointing!r}]"
        )
    for pattern in activation_checkpointing:
        if not isinstance(pattern, str):
            raise ConfigError(
                f"activation_checkpointing has {pattern!r}; give names of submodules, or patterns "
                'of names such as "blocks.*"'
            )
    return Precision(dtype, tuple(activation_checkpointing), compile, channels_last)


def full(value: Any) -> Any:
    """A tensor of half the width as float32, exactly; anything else as it is."""
    return value.float() if torch.is_tensor(value) and value.dtype in _HALF else value


def _in_full(result: MicroBatchResult) -> MicroBatchResult:
    if not (isinstance(result, tuple) and len(result) == 3):
        return result  # the caller says what is wrong with it
    loss_sum, weight, outputs = result
    return full(loss_sum), full(weight), full(outputs)


def _channels_last(column: torch.Tensor) -> torch.Tensor:
    if column.dim() != 4:
        return column
    return column.contiguous(memory_format=torch.channels_last)
