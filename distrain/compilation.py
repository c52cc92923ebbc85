"""Compiled models (rule 13): one kernel for each shape, chosen by no measurement of time.

After one short batch a dynamic kernel would serve the full ones, with other bits; and a kernel that
was the fastest in a trial is another one on the next day. So shapes are static, kernels are chosen
by rules, and a model that asks for more graphs than there may be is an error, where torch would go
on without compiling: which graphs a worker has seen depends on the number of workers.
"""

import importlib.util
import os
import shutil
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch

from distrain.errors import ConfigError, ProgramError

MOST_GRAPHS = 64
"""Of one function of a model: one for each shape, in training and in evaluation."""

_CHOSEN_BY_RULE: dict[str, Any] = {
    "max_autotune": False,
    "max_autotune_gemm": False,
    "max_autotune_pointwise": False,
    "coordinate_descent_tuning": False,
    "benchmark_fusion": False,
    "benchmark_combo_kernel": False,
    "triton.autotune_pointwise": False,
    "deterministic": True,
}
"""Whatever the environment says. Those that this torch does not know are left out."""

_NAME = "distrain_model_"
_numbers = count()


def refuse_compiled(model: torch.nn.Module) -> None:
    """Refuses a model that was compiled by others, by rules that are not known here.

    Raises:
        ConfigError: says what to do.
    """
    for name, module in model.named_modules():
        # torch.compile puts `_orig_mod.` before all names; Module.compile leaves a mark.
        if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
            raise ConfigError(
                f"{name.replace('_orig_mod.', '') or 'the model'} is compiled already, and may "
                "have kernels for dynamic shapes, which give other bits at other numbers of "
                "workers: give the model as it was before, and compile=True"
            )


def check_compiler(device: torch.device) -> None:
    """Refuses a machine where nothing can be compiled.

    Raises:
        ConfigError: says what is missing.
    """
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigError(
                "compile=True on a GPU needs the package triton, which is not installed: install "
                "it (torch's own wheels bring it), or leave compile out"
            )
        return
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None:
        raise ConfigError(
            f"compile=True needs a C++ compiler, and there is no {compiler}: install g++, name "
            "another in the environment variable CXX, or leave compile out"
        )


def check_batch_norm(*, compile: bool, batch_norm: str) -> None:  # noqa: A002 - torch's own word
    """Refuses to compile what exchanges statistics in mid-pass.

    Raises:
        ConfigError: says what to do.
    """
    if compile and batch_norm == "sync":
        raise ConfigError(
            'compile=True and batch_norm="sync" do not go together: the micro-batches of a worker '
            "wait for each other in each batch norm, which no compiled graph can; choose "
            'batch_norm="micro", or leave compile out'
        )


def compile_in_place(model: torch.nn.Module) -> None:
    """Compiles the model's call; names, classes and `state_dict` stay as they are.

    `Module.compile` would not do: it compiles nothing of a model whose class is one of torch's own,
    such as `Sequential` (torch 2.13), since torch's modules are only compiled within a function of
    somebody else's.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]

    # Graphs are kept by code object: with one of its own, a model has its own number of graphs.
    code = call.__code__.replace(co_name=f"{_NAME}{next(_numbers)}")
    entry = types.FunctionType(code, call.__globals__, code.co_name, None, call.__closure__)
    with warnings.catch_warnings():
        # What torch imports now uses parts of torch that are deprecated.
        warnings.simplefilter("ignore")
        known = set(torch._inductor.list_options())
        options = {name: value for name, value in _CHOSEN_BY_RULE.items() if name in known}
        compiled = torch.compile(entry, dynamic=False, options=options)
    model._compiled_call_impl = compiled


def undo_compiling(model: torch.nn.Module) -> None:
    """Takes back what another trainer of this process has done to the same model."""
    if getattr(model._compiled_call_impl, "__name__", "").startswith(_NAME):
        model._compiled_call_impl = None


@contextmanager
def static_graphs() -> Iterator[None]:
    """Within, running out of graphs is an error.

    Raises:
        ProgramError: the model needs a new graph again and again.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit  # noqa: PLC0415 - 2 s where it is needed

    limits = torch._dynamo.config.patch(
        recompile_limit=MOST_GRAPHS, fail_on_recompile_limit_hit=True
    )
    try:
        with limits:
            yield
    except FailOnRecompileLimitHit as error:
        raise ProgramError(
            f"compile=True: the model needs more than {MOST_GRAPHS} compiled graphs, so something "
            "in its forward pass is another number or shape each time (a count of calls, a length, "
            "a BatchNorm with momentum=None); run with TORCH_LOGS=recompiles to see what, keep it "
            "in a tensor or pad it, or leave compile out"
        ) from error
