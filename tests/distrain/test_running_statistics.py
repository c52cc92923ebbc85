"""Batch norm's running statistics, against torch's own update and against a mean by hand."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from distrain.errors import ConfigError
from distrain.parallel.running_statistics import RunningStatistics

Update = dict[str, torch.Tensor]


def running(model: nn.Module) -> Update:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def one_step(model: nn.Module, micro_batches: list[torch.Tensor]) -> None:
    """What a training step does about the statistics, all micro-batches on one worker."""
    statistics = RunningStatistics(model)
    num_samples = sum(len(inputs) for inputs in micro_batches)
    total = torch.zeros(statistics.num_floats)
    statistics.begin()
    for inputs in micro_batches:
        statistics.restore()
        model(inputs)
        leaf = torch.full((statistics.num_floats,), 5.0)
        statistics.collect(leaf, len(inputs) / num_samples)
        total += leaf
    statistics.apply(total)


def mean_of_updates(model: nn.Module, micro_batches: list[torch.Tensor]) -> Update:
    """By hand: torch's update from the same start for each, weighted by samples, in float64."""
    num_samples = sum(len(inputs) for inputs in micro_batches)
    found: Update = {}
    for inputs in micro_batches:
        single = copy.deepcopy(model)
        single(inputs)
        for name, buffer in single.named_buffers():
            part = buffer.double() * len(inputs) / num_samples
            found[name] = found[name] + part if name in found else part
    return found


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(3), (3,)),
    "1d over a sequence": (lambda: nn.BatchNorm1d(3), (3, 5)),
    "2d": (lambda: nn.BatchNorm2d(3), (3, 4, 4)),
    "3d": (lambda: nn.BatchNorm3d(3, momentum=0.3), (3, 2, 2, 2)),
    "cumulative": (lambda: nn.BatchNorm1d(3, momentum=None), (3,)),
    "instance": (lambda: nn.InstanceNorm1d(3, track_running_stats=True), (3, 6)),
}


@pytest.fixture(params=NORMS)
def norm(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[int, ...]]:
    """A norm whose averages have moved already, and the shape of a sample."""
    build, shape = NORMS[request.param]
    torch.manual_seed(1)
    model = nn.Sequential(build())
    for _ in range(3):
        model(torch.randn(8, *shape) * 2 + 1)
    return model, shape


@pytest.mark.parametrize("num_samples", [2, 7, 11, 32])
def test_one_micro_batch_updates_exactly_as_torch_does(
    norm: tuple[nn.Module, tuple[int, ...]], num_samples: int
) -> None:
    model, shape = norm
    theirs = copy.deepcopy(model)
    for step in range(3):
        inputs = torch.randn(num_samples, *shape) * 3 + step
        theirs(inputs)
        one_step(model, [inputs])
    expected = running(theirs)
    assert all(torch.equal(buffer, expected[name]) for name, buffer in running(model).items())


def test_several_micro_batches_give_the_mean_of_their_updates_weighted_by_samples(
    norm: tuple[nn.Module, tuple[int, ...]],
) -> None:
    model, shape = norm
    micro_batches = [torch.randn(size, *shape) * size for size in (8, 8, 3)]
    expected = mean_of_updates(model, micro_batches)
    before = running(model)
    one_step(model, micro_batches)
    for name, buffer in running(model).items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(buffer, expected[name].float(), rtol=1e-6, atol=1e-6)
            assert not torch.equal(buffer, before[name])


def test_the_running_mean_is_that_of_the_formula() -> None:
    model = nn.BatchNorm1d(1, momentum=0.1)
    assert model.running_mean is not None
    model.running_mean.fill_(10.0)
    one_step(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0], [9.0], [7.0]])])
    # 0.9 * 10 + 0.1 * (2 samples of mean 2 and 4 of mean 7)
    assert model.running_mean.item() == pytest.approx(9.0 + 0.1 * (2 * 2.0 + 4 * 7.0) / 6)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 5])
def test_a_step_counts_as_one_batch_whatever_its_micro_batches(num_micro_batches: int) -> None:
    model = nn.BatchNorm1d(2)
    for _ in range(3):
        one_step(model, [torch.randn(4, 2) for _ in range(num_micro_batches)])
    assert model.num_batches_tracked is not None
    assert model.num_batches_tracked.item() == 3


def test_a_frozen_norm_keeps_its_statistics_to_the_bit() -> None:
    torch.manual_seed(0)
    frozen = nn.BatchNorm1d(50)
    frozen(torch.randn(16, 50))
    model = nn.Sequential(frozen, nn.BatchNorm1d(50))
    frozen.eval()
    before = running(frozen)
    for _ in range(4):
        one_step(model, [torch.randn(size, 50) for size in (7, 7, 7, 6)])
    assert all(torch.equal(buffer, before[name]) for name, buffer in running(frozen).items())
    assert int(running(model)["1.num_batches_tracked"]) == 4


def test_a_norm_that_two_places_share_is_counted_once() -> None:
    shared = nn.BatchNorm1d(3)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert RunningStatistics(model).num_floats == 6
    one_step(model, [torch.randn(4, 3), torch.randn(4, 3)])
    assert shared.num_batches_tracked is not None
    assert shared.num_batches_tracked.item() == 1


def test_a_norm_without_running_averages_has_nothing_to_travel() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.LayerNorm(3))
    assert RunningStatistics(model).num_floats == 0
    one_step(model, [torch.randn(4, 3)])


def test_every_micro_batch_starts_from_the_statistics_of_the_steps_begin() -> None:
    model = nn.BatchNorm1d(2)
    statistics = RunningStatistics(model)
    before = running(model)
    statistics.begin()
    model(torch.randn(8, 2))
    assert not torch.equal(running(model)["running_mean"], before["running_mean"])
    statistics.restore()
    assert all(torch.equal(buffer, before[name]) for name, buffer in running(model).items())


def test_torchs_synchronised_batch_norm_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.SyncBatchNorm(2))
    with pytest.raises(ConfigError, match=r"^1 is torch's SyncBatchNorm, .* use BatchNorm"):
        RunningStatistics(model)
