"""What a forward pass keeps for its backward pass, measured on a copy of the model."""

import copy

import torch

from distrain.micro_batch import Columns, MicroBatchStep


def activation_bytes(model: torch.nn.Module, run: MicroBatchStep, columns: Columns) -> int:
    """Bytes that one micro-batch keeps for its backward pass, weights and samples not among them.

    The model is left as it is; what can't be copied raises whatever it raises.
    """
    copied = copy.deepcopy(model).train()
    there = (*copied.parameters(), *columns.values())
    others = {tensor.untyped_storage().data_ptr() for tensor in there}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in others:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run(copied, columns)  # noqa: F841 - freed memory would be counted again
    return sum(kept.values())
