"""The first place that is not finite, planted in nets where it is known; and nothing is changed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from distrain.activation_checkpointing import checkpoint_activations
from distrain.practice.first_non_finite import NonFinite, looking

ROWS, WIDTH = 6, 4


class Planted(nn.Module):
    """Does something to its input, and has a weight of its own."""

    def __init__(self, what: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.what, self.weight = what, nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.what(x * self.weight)


class Branching(nn.Module):
    """Residual, in place, with code of its own between its modules."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.relu, self.between = nn.ReLU(inplace=True), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.between(self.relu(self.first(x)))
        found: torch.Tensor = self.second(y) + x
        return found


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def spoil_row(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x[:2], x[2:3] * math.nan, x[3:]])


def steep(x: torch.Tensor) -> torch.Tensor:
    """Finite forward; its gradient is infinite."""
    return x + (x - x.detach()).sqrt()


def net(**planted: Callable[[torch.Tensor], torch.Tensor]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(inplace=True),
        Planted(planted.get("layer", same)),
        Branching(planted.get("between", same)),
        nn.Linear(WIDTH, 2),
    )


def samples() -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def loss_of(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.square().sum()


def found_in(
    model: nn.Module,
    x: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor] = loss_of,
) -> list[NonFinite]:
    found: list[NonFinite] = []
    with looking(model, 3, {"x": x}, found.append):
        loss(model(x)).backward()  # type: ignore[no-untyped-call]
    return found


def described(first: NonFinite) -> tuple[Any, ...]:
    assert first.micro_batch == 3
    return first.place, first.layer, first.kind, first.is_nan


@pytest.mark.parametrize(
    ("planted", "expected"),
    [
        ({"layer": spoil_row}, ("output", "2", "Planted", True)),
        ({"layer": lambda x: x / 0.0 * 1.0}, ("output", "2", "Planted", True)),
        ({"layer": lambda x: x.exp() / 0.0}, ("output", "2", "Planted", False)),
        ({"between": spoil_row}, ("input", "3.second", "Linear", True)),
        ({"layer": steep}, ("gradient of the parameter", "2.weight", "Planted", True)),
        ({"between": steep}, ("gradient of the output", "3.relu", "ReLU", False)),
    ],
)
def test_the_first_place_is_the_one_that_was_planted(
    planted: dict[str, Callable[[torch.Tensor], torch.Tensor]], expected: tuple[Any, ...]
) -> None:
    assert described(found_in(net(**planted), samples())[0]) == expected


def test_the_samples_are_named_where_their_dimension_is_the_first() -> None:
    assert found_in(net(layer=spoil_row), samples())[0].samples == (2,)


def test_samples_that_are_spoiled_already_are_told_from_what_layers_do() -> None:
    x = samples()
    x[4, 1] = math.inf
    first = found_in(net(), x)[0]
    assert (first.place, first.layer, first.samples, first.is_nan) == ("column", "x", (4,), False)


def test_a_loss_that_has_no_gradient_is_told_from_the_layers() -> None:
    def loss(outputs: torch.Tensor) -> torch.Tensor:
        return steep(outputs).sum()

    first = found_in(net(), samples(), loss)[0]
    assert described(first) == ("gradient of the output", "4", "Linear", False)


def test_a_gradient_that_only_a_parameter_has_is_its() -> None:
    model = nn.Linear(WIDTH, 2)  # its input wants no gradient

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        return 1e30 * outputs.sum()

    first = found_in(model, samples().abs() * 1e30, loss)[0]
    assert described(first) == ("gradient of the parameter", "weight", "Linear", False)
    assert first.owner == ""


def test_weights_that_were_ruined_before_are_named() -> None:
    model = net()
    with torch.no_grad():
        next(model.parameters())[0, 0] = math.nan
    first = found_in(model, samples())[0]
    assert (first.place, first.layer, first.weights) == ("output", "0", ("weight",))


def test_what_a_backward_pass_has_run_again_is_looked_at_once() -> None:
    model = net(layer=steep)
    checkpoint_activations(model, ["2", "3"])
    found = found_in(model, samples())
    assert (found[0].owner, found[0].kind, found[1].place) == (
        "2",
        "Planted",
        "gradient of the input",
    )


def test_a_look_changes_no_bit_and_leaves_no_hook() -> None:
    def gradients(*, looked: bool) -> list[torch.Tensor]:
        model, x = net(), samples()
        if looked:
            assert found_in(model, x) == []
            for module in model.modules():
                assert not module._forward_hooks
                assert not module._forward_pre_hooks
            assert not any(p._backward_hooks for p in model.parameters())
        else:
            loss_of(model(x)).backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, looked = gradients(looked=False), gradients(looked=True)
    assert len(plain) == 9
    assert all(torch.equal(a, b) for a, b in zip(plain, looked, strict=True))
