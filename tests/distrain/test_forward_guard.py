"""State that a forward pass changes and that no rule covers is refused by name."""

import pytest
import torch
from torch import nn

from distrain.errors import ProgramError
from distrain.parallel.forward_guard import ForwardGuard
from distrain.parallel.running_statistics import RunningStatistics


def one_step(model: nn.Module, inputs: torch.Tensor) -> None:
    guard = ForwardGuard(model, RunningStatistics(model).covered)
    guard.begin()
    model(inputs)
    guard.check()


class Counting(nn.Module):
    """Counts its calls in a buffer, in place or by a new tensor."""

    calls: torch.Tensor

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.in_place = in_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("beside_a_norm", [True, False])
def test_a_buffer_that_a_forward_pass_changes_is_refused_by_name(
    in_place: bool, beside_a_norm: bool
) -> None:
    first = nn.BatchNorm1d(2) if beside_a_norm else nn.Identity()
    model = nn.Sequential(first, Counting(in_place=in_place))
    with pytest.raises(ProgramError, match=r"changed the buffer 1\.calls"):
        one_step(model, torch.randn(4, 2))


def test_spectral_norms_vectors_are_refused_by_name() -> None:
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))
    with pytest.raises(ProgramError, match=r"changed the buffer 0\.parametrizations\.weight"):
        one_step(model, torch.randn(4, 3))


def test_a_buffer_that_is_only_read_is_no_fault() -> None:
    class Scaled(nn.Module):
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    one_step(nn.Sequential(Scaled(), nn.BatchNorm1d(2)), torch.randn(4, 2))


def test_an_embedding_that_renormalises_its_table_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(5, 3, max_norm=0.1))
    with pytest.raises(ProgramError, match=r"changed the parameter 0\.weight.*max_norm"):
        one_step(model, torch.tensor([1, 2]))


def test_a_parameter_that_is_clamped_on_the_way_is_refused_by_name() -> None:
    class Clamped(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(inputs)

    with pytest.raises(ProgramError, match="changed the parameter weight"):
        one_step(Clamped(2, 2), torch.randn(4, 2))


def test_an_update_between_two_steps_is_no_fault() -> None:
    model = nn.Linear(2, 2)
    guard = ForwardGuard(model, ())
    for _ in range(2):
        guard.begin()
        model(torch.randn(4, 2)).sum().backward()
        guard.check()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
