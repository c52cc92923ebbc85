"""Steps of models with batch norm: by micro-batch or synchronised, computed again, not finite."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distrain.blame import Mark, at_fault, new_marks
from distrain.coordinator.metrics import MetricSet
from distrain.errors import ConfigError, NonFiniteError, ProgramError
from distrain.micro_batch import Columns, MicroBatchResult
from distrain.parallel.communicator import Communicator
from distrain.parallel.replicas import weights_digest
from distrain.parallel.split import BatchPlan
from distrain.parallel.world import World
from distrain.step import TrainingStep
from distrain.step_settings import StepSettings
from distrain.update import Clip
from tests.thread_workers import ThreadGroup, on_threads

CPU = torch.device("cpu")


class Again(nn.Module):
    """Runs the module within once more for its gradients."""

    def __init__(self, within: nn.Module, *, reentrant: bool) -> None:
        super().__init__()
        self.within, self.reentrant = within, reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = checkpoint(self.within, x, use_reentrant=self.reentrant)
        return outputs


def net(wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.Sequential(nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    return nn.Sequential(nn.Linear(6, 8), wrap(middle), nn.Linear(8, 1))


def samples(num_rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_rows, 6, generator=generator) * 2 + 1
    return {"x": x, "y": x[:, :1].sin()}


def squared(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = model(columns["x"])
    return (outputs - columns["y"]).square().sum(), float(len(outputs)), outputs


def train(
    model: nn.Module,
    communicator: Communicator,
    *,
    columns: dict[str, torch.Tensor] | None = None,
    run: Callable[[nn.Module, Columns], MicroBatchResult] = squared,
    batch_norm: Any = "sync",
    num_steps: int = 1,
) -> TrainingStep:
    """Steps over the same 14 samples, cut into 4, 4, 4 and 2."""
    columns = columns or samples(14)
    step = TrainingStep(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        run,
        MetricSet((), 0),
        World(communicator, CPU),
        StepSettings(
            target="y", seed=0, schedule=lambda _: 1.0, clip=Clip(), batch_norm=batch_norm
        ),
        global_batch=16,
        rows_at=lambda epoch, start, stop: 1000 * (epoch + 1) + np.arange(start, stop),
    )
    for number in range(num_steps):
        batch = BatchPlan(14, 16, 4).batch(number)
        owned = batch.owned(communicator.rank, communicator.world_size)
        start, stop = batch.positions(owned)
        own = {name: c[start - batch.start : stop - batch.start] for name, c in columns.items()}
        step(batch, own)
    return step


def by_torch(model: nn.Module, num_steps: int) -> dict[str, torch.Tensor]:
    """A plain loop over the whole batch."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss, weight, _ = squared(model, samples(14))
        (loss / weight).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_with_synchronised_norms_is_a_plain_loop_over_the_whole_batch(
    world_size: int,
) -> None:
    begin = net()  # torch has one generator for all these threads
    expected = by_torch(copy.deepcopy(begin), 5)

    def work(communicator: Communicator) -> dict[str, torch.Tensor]:
        model = copy.deepcopy(begin)
        train(model, communicator, num_steps=5)
        return model.state_dict()

    found = on_threads(ThreadGroup(world_size), work)
    for name, value in expected.items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-5)
        assert all(torch.equal(state[name], found[0][name]) for state in found)


@pytest.mark.parametrize("batch_norm", ["micro", "sync"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("world_size", [1, 2])
def test_what_is_computed_again_moves_running_statistics_once(
    batch_norm: str, reentrant: bool, world_size: int
) -> None:
    def trained(wrap: Callable[[nn.Module], nn.Module]) -> list[list[float]]:
        begin = net(wrap)

        def work(communicator: Communicator) -> list[list[float]]:
            model = copy.deepcopy(begin)
            train(model, communicator, num_steps=3, batch_norm=batch_norm)
            return [value.flatten().tolist() for value in model.state_dict().values()]

        first, *others = on_threads(ThreadGroup(world_size), work)
        assert all(other == first for other in others)
        return first

    assert trained(lambda module: Again(module, reentrant=reentrant)) == trained(lambda m: m)


@pytest.mark.parametrize("batch_norm", ["micro", "sync"])
def test_a_step_counts_as_one_batch(batch_norm: str) -> None:
    model = net(lambda module: Again(module, reentrant=False))
    on_threads(ThreadGroup(1), lambda c: train(model, c, num_steps=3, batch_norm=batch_norm))
    counts = [v.item() for name, v in model.state_dict().items() if name.endswith("tracked")]
    assert counts == [3, 3]


class Planted(torch.autograd.Function):
    """Passes values on; the gradient of rows whose first value is 9 is NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(marked)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        (marked,) = ctx.saved_tensors
        return torch.where(marked[:, None], torch.nan, grads[0]), None


def wrong_input(model: nn.Module, columns: Columns) -> MicroBatchResult:
    x = torch.where(columns["x"] == 9.0, torch.inf, columns["x"])
    return squared(model, {**columns, "x": x})


def wrong_loss(model: nn.Module, columns: Columns) -> MicroBatchResult:
    loss, weight, outputs = squared(model, columns)
    return loss + (torch.nan if (columns["x"] == 9.0).any() else 0.0), weight, outputs


def wrong_gradient(model: nn.Module, columns: Columns) -> MicroBatchResult:
    outputs = Planted.apply(model(columns["x"]), columns["x"][:, 0] == 9.0)  # type: ignore[no-untyped-call]
    return (outputs - columns["y"]).square().sum(), float(len(outputs)), outputs


WRONG = {
    "input of a batch norm": wrong_input,
    "loss": wrong_loss,
    "gradient": wrong_gradient,
}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_not_finite_names_its_own_micro_batch_though_all_follow(
    what: str, world_size: int
) -> None:
    columns = samples(14)
    columns["x"][5, 0] = 9.0
    begin = net()

    def work(communicator: Communicator) -> tuple[str, list[int], bool]:
        model = copy.deepcopy(begin)
        before = weights_digest(model)
        with pytest.raises(NonFiniteError) as caught:
            train(model, communicator, columns=columns, run=WRONG[what])
        return caught.value.what, list(caught.value.rows), weights_digest(model) == before

    found = on_threads(ThreadGroup(world_size), work)
    assert found == [(what, [1004, 1005, 1006, 1007], True)] * world_size


def test_the_earliest_meeting_is_to_blame() -> None:
    marks = new_marks(4)
    marks[Mark.LOSS] = 1
    marks[Mark.NORM_INPUT] = torch.tensor([5, 0, 3, 3])
    assert at_fault(marks) == ("input of a batch norm", [2, 3])
    marks[Mark.NORM_INPUT] = 0
    assert at_fault(marks) == ("loss", [0, 1, 2, 3])


def test_a_persons_exception_in_one_micro_batch_is_raised_as_it_is() -> None:
    def run(model: nn.Module, columns: Columns) -> MicroBatchResult:
        if len(columns["x"]) == 2:
            raise ValueError("bad luck with the last one")
        return squared(model, columns)

    model = net()
    before = weights_digest(model)
    with pytest.raises(ValueError, match=r"^bad luck with the last one"):
        on_threads(ThreadGroup(1), lambda c: train(model, c, run=run))
    assert weights_digest(model) == before


def test_a_forward_pass_that_changes_state_in_a_copy_is_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: torch.Tensor
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = self.seen + 1
            return x

    model = nn.Sequential(net(), Counting())
    with pytest.raises(ProgramError, match=r"the forward pass changed the buffer 1\.seen"):
        on_threads(ThreadGroup(1), lambda c: train(model, c))


def test_a_kind_of_batch_norm_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match='batch_norm is \'both\'; give "micro" or "sync"'):
        on_threads(ThreadGroup(1), lambda c: train(net(), c, batch_norm="both"))


def test_weights_that_are_exchanged_between_steps_are_those_that_copies_train_on() -> None:
    model, reference = net(), net()

    def work(communicator: Communicator) -> None:
        step = train(model, communicator, num_steps=1)
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()  # as a sharded optimizer does
        columns = samples(14)
        step(BatchPlan(14, 16, 4).batch(1), columns)

    on_threads(ThreadGroup(1), work)
    on_threads(ThreadGroup(1), lambda c: train(reference, c, num_steps=2))
    assert weights_digest(model) == weights_digest(reference)
