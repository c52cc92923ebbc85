"""Modules that run again for their gradients: the same bits in less memory."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import distrain
from data_pipeline import Dataset
from distrain.activation_checkpointing import checkpoint_activations, undo_checkpointing
from distrain.errors import ConfigError
from distrain.parallel.replicas import weights_digest


class Block(nn.Module):
    """Everything that could go wrong the second time: dropout, running statistics, a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()
        self.runs = 0

    def forward(self, x: torch.Tensor, *, slope: float) -> torch.Tensor:
        self.runs += 1
        outputs: torch.Tensor = self.dropout(self.norm(self.linear(x)))
        return nn.functional.leaky_relu(outputs, slope) + x


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, slope=0.1)
        outputs: torch.Tensor = self.head(x)
        return outputs

    @property
    def runs(self) -> list[int]:
        return [block.runs for block in self.blocks if isinstance(block, Block)]


def trained(**options: Any) -> distrain.Trainer:
    generator = np.random.default_rng(0)
    data = Dataset.from_arrays(
        {
            "x": generator.standard_normal((40, 8)).astype(np.float32),
            "y": generator.integers(0, 3, 40),
        }
    )
    trainer = distrain.Trainer(
        model=Net,
        loss=nn.CrossEntropyLoss(),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        inputs="x",
        target="y",
        progress=False,
        **options,
    )
    trainer.fit(data, data, epochs=2, global_batch=16, micro_batch=4)
    return trainer


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_and_running_statistics_are_those_of_a_run_without_it(precision: str) -> None:
    plain = trained(precision=precision)
    saving = trained(precision=precision, activation_checkpointing=["blocks.*"])
    assert weights_digest(saving.model) == weights_digest(plain.model)
    assert list(saving.model.state_dict()) == list(plain.model.state_dict())
    assert type(saving.model) is Net
    assert isinstance(plain.model, Net)
    # 2 epochs of 10 micro-batches run again, and one chunk of an evaluation each does not.
    assert plain.model.runs == [22, 22, 22]
    assert saving.model.runs == [42, 42, 42]


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept_bytes(model: nn.Module) -> int:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.randn(1024, 8))
        return sum(kept.values())

    model = Net()
    before = kept_bytes(model)
    checkpoint_activations(model, ["blocks.*"])
    assert kept_bytes(model) < before / 2


def test_of_modules_within_each_other_the_outermost_run_again() -> None:
    model = Net()
    assert checkpoint_activations(model, ["blocks.*", "*.norm"]) == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]
    undo_checkpointing(model)
    assert checkpoint_activations(model, ["*.norm"]) == [f"blocks.{n}.norm" for n in range(3)]


def test_a_copy_of_the_model_runs_its_own_modules() -> None:
    model = Net()
    checkpoint_activations(model, ["blocks.*"])
    copied = copy.deepcopy(model)
    copied(torch.randn(4, 8)).sum().backward()
    assert copied.runs == [2, 2, 2]
    assert model.runs == [0, 0, 0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_another_trainer_of_the_same_module_may_do_without() -> None:
    model = Net()
    options: dict[str, Any] = {
        "model": model,
        "loss": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD,
        "inputs": "x",
        "target": "y",
    }
    distrain.Trainer(**options, activation_checkpointing=["blocks.*"])
    assert "forward" in vars(model.blocks[0])
    distrain.Trainer(**options, activation_checkpointing=["blocks.1"])
    assert "forward" not in vars(model.blocks[0])
    distrain.Trainer(**options)
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_pattern_that_names_nothing_is_refused_with_near_names() -> None:
    message = r"names 'block\.0', which no submodule of the model is called; did you mean blocks\.0"
    with pytest.raises(ConfigError, match=message):
        checkpoint_activations(Net(), ["block.0"])
    with pytest.raises(ConfigError, match="it has none"):
        checkpoint_activations(nn.Linear(2, 2), ["*"])


def test_a_text_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"is the text 'blocks\.\*'; give a list"):
        trained(activation_checkpointing="blocks.*")
    with pytest.raises(ConfigError, match="has 3; give names of submodules, or patterns"):
        trained(activation_checkpointing=[3])


def test_a_module_whose_forward_was_replaced_is_refused() -> None:
    model = Net()
    model.head.forward = lambda x: x  # type: ignore[method-assign,assignment]
    with pytest.raises(ConfigError, match="names head, whose forward was replaced"):
        checkpoint_activations(model, ["head"])
