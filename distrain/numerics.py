"""The rules that keep the bits, and what each one is called in docs/numerics.md.

A part that touches numbers names its rule by number. What applies to all parts stands here: the
seeds (rule 12) and the number of compute threads (rule 2).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data_pipeline.random import derive_key

FLOATS_PER_LINE = 16
"""Rule 9: parameters start at multiples of this in the flat layout."""

NORM_BLOCK = 4096
"""Rule 8: the gradient norm is folded over blocks of this many floats."""

ALIGNMENT = 64
"""Rule 16: what a kernel reads starts at a multiple of this many bytes."""

_SEED_BITS = 63


def initialization_seed(run_seed: int) -> int:
    """The seed under which a model is built (rule 12)."""
    return derive_key("initialization", run_seed) >> (128 - _SEED_BITS)


def micro_batch_seed(run_seed: int, step: int, micro_batch: int) -> int:
    """The seed of everything random in one micro-batch: it knows of no rank (rule 12)."""
    return derive_key("micro-batch", run_seed, step, micro_batch) >> (128 - _SEED_BITS)


def update_seed(run_seed: int, step: int) -> int:
    """The seed for what an optimizer draws in a step, the same on every worker."""
    return derive_key("update", run_seed, step) >> (128 - _SEED_BITS)


def evaluation_seed(run_seed: int, micro_batch: int) -> int:
    """The seed for one micro-batch of an evaluation, the same at every evaluation."""
    return derive_key("evaluation", run_seed, micro_batch) >> (128 - _SEED_BITS)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds torch's generators for the CPU and, on a GPU, for that device."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def fix_kernels(compute_threads: int, *, deterministic: bool) -> None:
    """Sets the number of compute threads (rule 2), and deterministic kernels or not.

    The number of threads decides how an operation is cut up, and so its last bits: it belongs to
    the job, and is never derived from cores or workers.
    """
    torch.set_num_threads(compute_threads)
    torch.use_deterministic_algorithms(deterministic)
    # Filling fresh memory guards against reading it before writing it, at a cost for each tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its memory starts at a multiple of 64 bytes, else a copy that does.

    Where a slice starts within a worker's buffer depends on the number of workers, and a matrix
    product gives other bits for unaligned operands (rule 16). Fresh tensors of torch are aligned.
    """
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off, running statistics used, no gradients; every module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: what a module caches there could never be trained on.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
