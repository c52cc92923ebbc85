"""What a step does to each parameter: the norms of gradient, weights and update, by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from distrain.errors import ConfigError
from distrain.practice.inspection import Inspection, Inspector


def inspected(
    model: nn.Module, every: int | None, steps: int
) -> tuple[list[Inspection | None], int]:
    """What is seen at each step of a plain loop, and how often gradients were asked for."""
    named = dict(model.named_parameters())
    inspector = Inspector(list(named), list(named.values()), every)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    found, asked = [], 0
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()

        def gradients() -> Sequence[torch.Tensor]:
            nonlocal asked
            asked += 1
            return [p.grad for p in named.values() if p.grad is not None]

        inspector.before(step, gradients)
        optimizer.step()
        found.append(inspector.after())
    return found, asked


def test_norms_and_ratios_are_those_of_a_hand_computation() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
        model.bias.zero_()
    (found, *_), _ = inspected(model, 1, 1)
    assert found is not None
    assert found.names == ("weight", "bias")
    # The gradient is 1 everywhere: sqrt(6) and sqrt(2), times the rate for the updates.
    assert found.gradient_norms == pytest.approx((math.sqrt(6), math.sqrt(2)))
    assert found.weight_norms == (5.0, 0.0)
    assert found.update_norms == pytest.approx((0.5 * math.sqrt(6), 0.5 * math.sqrt(2)))
    assert found.update_ratios[0] == pytest.approx(0.5 * math.sqrt(6) / 5)
    assert math.isnan(found.update_ratios[1]), "no ratio to weights that are all 0"


def test_every_third_step_is_looked_at_and_gradients_are_asked_for_only_there() -> None:
    found, asked = inspected(nn.Linear(3, 2), 3, 7)
    assert [each is not None for each in found] == [False, False, True, False, False, True, False]
    assert asked == 2


@pytest.mark.parametrize("every", [None, 0])
def test_nothing_is_looked_at_unless_it_is_asked_for(every: int | None) -> None:
    assert inspected(nn.Linear(3, 2), every, 5) == ([None] * 5, 0)


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ConfigError, match="inspect_every is -2; give 1 or more, or 0 for never"):
        Inspector([], [], -2)
