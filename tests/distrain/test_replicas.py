"""One model on every worker: built under the seed, or taken from rank 0, and never two."""

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from distrain.errors import ConfigError, ProgramError
from distrain.parallel.communicator import Alone
from distrain.parallel.replicas import build_model, weights_digest
from distrain.parallel.world import World
from tests.thread_workers import outcomes

ALONE = World(Alone(), torch.device("cpu"))


class Pair(Alone):
    """A worker of two that is shown what the other sends and is given what rank 0 has."""

    world_size = 2

    def __init__(self, rank: int, other: nn.Module, others_sends: list[torch.Tensor]) -> None:
        self.rank, self._others_sends = rank, others_sends
        self._state = list(other.state_dict().values())

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        pair = [send, self._others_sends.pop(0)]
        assert out is None
        return torch.stack(pair if self.rank == 0 else pair[::-1])

    def broadcast(self, tensor: torch.Tensor) -> None:
        theirs = self._state.pop(0)
        if self.rank:
            tensor.copy_(theirs)


class Listening(Alone):
    """Keeps what a worker sends, to be shown to the other of a pair."""

    world_size = 2

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def all_gather(self, send: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        assert out is None
        self.sent.append(send)
        return torch.stack([send, send])


def build_beside(
    other: nn.Module, source: nn.Module | Callable[[], nn.Module], *, rank: int
) -> nn.Module:
    """`build_model` on one of two workers of which the other has that model."""
    listening = Listening()
    build_model(other, 0, World(listening, torch.device("cpu")))
    return build_model(source, 0, World(Pair(rank, other, listening.sent), torch.device("cpu")))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_function_builds_the_same_weights_for_the_same_seed_whatever_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = weights_digest(build_model(net, 5, ALONE))
    torch.rand(100)
    assert weights_digest(build_model(net, 5, ALONE)) == first
    assert weights_digest(build_model(net, 6, ALONE)) != first


def test_a_ready_module_is_taken_as_it_is() -> None:
    model = net()
    before = weights_digest(model)
    assert build_model(model, 5, ALONE) is model
    assert weights_digest(model) == before


def test_a_function_that_builds_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"builds the model returned .*NoneType"):
        build_model(lambda: None, 0, ALONE)  # type: ignore[arg-type, return-value]


def test_a_parameter_without_a_shape_yet_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model[0].weight = nn.UninitializedParameter()
    with pytest.raises(
        ConfigError, match=r"parameter 0\.weight has no shape yet \(a lazy module\)"
    ):
        build_model(model, 0, ALONE)


@pytest.mark.parametrize("rank", [0, 1])
def test_equal_models_on_two_workers_are_left_as_they_are(rank: int) -> None:
    other = build_model(net, 0, ALONE)
    model = build_beside(other, net, rank=rank)
    assert weights_digest(model) == weights_digest(other)


def test_ready_modules_that_differ_get_the_weights_of_rank_0() -> None:
    torch.manual_seed(0)
    first, second = net(), net()
    weights = weights_digest(first)
    assert weights_digest(second) != weights
    build_beside(first, second, rank=1)
    assert weights_digest(second) == weights
    torch.manual_seed(1)
    build_beside(net(), first, rank=0)
    assert weights_digest(first) == weights, "rank 0 keeps its own"


def refusals(models: Sequence[nn.Module]) -> set[str]:
    """What workers are told, of which each has a function that gives one of the models."""
    found = outcomes(len(models), lambda world: build_model(lambda: models[world.rank], 0, world))
    assert {type(each) for each in found} <= {ConfigError, ProgramError}, found
    return {str(each) for each in found}


def test_a_function_that_draws_from_elsewhere_than_torch_is_refused() -> None:
    def strange() -> nn.Module:
        model = build_model(net, 0, ALONE)
        nn.init.constant_(model[2].bias, random.random())  # type: ignore[index]
        return model

    (told,) = refusals([strange(), strange()])
    assert "gave other weights on ranks [1] than on rank 0: the values of 2.bias differ" in told
    assert "draw random numbers from torch's generators only" in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m.append(nn.Linear(2, 2)), "3.weight is on rank 2 alone"),
        (lambda m: m.pop(2), "2.weight is missing on rank 2"),
        (
            lambda m: m.insert(0, nn.Linear(3, 3)),
            "0.weight is of shape (4, 3) on rank 0 and of shape (3, 3) on rank 2",
        ),
        (
            lambda m: m[1].to(torch.float64),
            "1.weight is torch.float32 on rank 0 and torch.float64 on rank 2",
        ),
        (
            lambda m: m[2].bias.requires_grad_(False),
            "2.bias is trained on rank 0 and frozen on rank 2",
        ),
        (
            lambda m: setattr(m[1], "running_mean", None),
            "1.running_mean is missing on rank 2",
        ),
        (
            lambda m: m[0].register_buffer("mask", torch.ones(2)),
            "0.mask is on rank 2 alone",
        ),
    ],
)
def test_models_of_another_structure_are_refused_by_the_first_name_and_how_it_differs(
    change: Callable[[Any], object], told: str
) -> None:
    models = [net() for _ in range(4)]
    change(models[2])
    (said,) = refusals(models)
    assert said == (
        f"the models of ranks [2] have other parameters than that of rank 0: {told}; build the "
        "same model on every worker"
    )


def test_a_buffer_where_another_worker_has_a_parameter_and_another_order_are_told() -> None:
    first, other = nn.Module(), nn.Module()
    first.register_parameter("scale", nn.Parameter(torch.ones(2)))
    other.register_buffer("scale", torch.ones(2))
    (told,) = refusals([first, other])
    assert "scale is a parameter on rank 0 and a buffer on rank 1" in told
    layers = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    (told,) = refusals([nn.ModuleDict(layers), nn.ModuleDict(dict(reversed(layers.items())))])
    assert "a.weight comes on rank 0 where b.weight comes on rank 1" in told


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["0.weight"].view(-1)[5].add_(1e-6),
        lambda state: state["1.running_var"].view(-1)[0].mul_(1.5),
        lambda state: state["1.num_batches_tracked"].add_(1),
        lambda state: state["2.bias"].neg_(),
    ],
)
def test_a_digest_changes_with_any_weight_and_buffer(
    change: Callable[[dict[str, torch.Tensor]], object],
) -> None:
    model = net()
    before = weights_digest(model)
    assert weights_digest(copy.deepcopy(model)) == before
    with torch.no_grad():
        change(model.state_dict())
    assert weights_digest(model) != before


def test_a_digest_tells_negative_zero_and_dtypes_apart_and_not_memory_layouts() -> None:
    model = nn.Conv2d(3, 4, 3)
    nn.init.zeros_(model.weight)
    digests = {weights_digest(model)}
    with torch.no_grad():
        model.weight.neg_()
    digests.add(weights_digest(model))
    assert weights_digest(model.to(memory_format=torch.channels_last)) in digests  # type: ignore[call-overload]
    digests.add(weights_digest(model.to(torch.bfloat16)))
    assert len(digests) == 3
