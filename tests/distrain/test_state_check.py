"""Workers that no longer hold one state are told apart: who, in what, and since when."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distrain.errors import DivergedError, ExitCode, exit_code_of, is_for_the_user
from distrain.parallel.communicator import Alone
from distrain.parallel.state_check import Parted, StateCheck, parted, replicated_state
from distrain.parallel.world import World
from tests.thread_workers import outcomes


def trained() -> tuple[Any, torch.optim.SGD]:
    """A model with running statistics and momentum, the same each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def flip(tensor: torch.Tensor, bit: int = 0) -> None:
    with torch.no_grad():
        tensor.reshape(-1).view(torch.int32)[0] ^= 1 << bit


def checked(
    num_workers: int,
    change: Callable[[int, Any, torch.optim.SGD], object],
    *,
    closing: bool = False,
) -> list[Any]:
    """What a check of `num_workers` says, of which each has changed its state in its way."""
    states = [trained() for _ in range(num_workers)]

    def work(world: World) -> int | None:
        model, optimizer = states[world.rank]
        check = StateCheck(model, optimizer, world, every_steps=10)
        assert check.word(0) == 0
        change(world.rank, model, optimizer)
        if closing:
            check.compare(7)
        else:
            word = torch.tensor([check.word(10)])
            check.judge(10, world.communicator.all_gather(word).flatten().tolist())
        return check.alike_after

    return outcomes(num_workers, work)


@pytest.mark.parametrize("closing", [False, True])
def test_equal_states_are_alike(closing: bool) -> None:
    assert checked(3, lambda *_: None, closing=closing) == [7 if closing else 10] * 3


PLACES: dict[str, Callable[[Any, torch.optim.SGD], torch.Tensor]] = {
    "parameter 0.bias": lambda model, _: model[0].bias,
    "parameter 2.weight": lambda model, _: model[2].weight,
    "buffer 1.running_var": lambda model, _: model[1].running_var,
    "momentum_buffer of 2.weight": lambda model, sgd: sgd.state[model[2].weight]["momentum_buffer"],
}


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(("num_workers", "rank"), [(3, 0), (3, 2), (4, 1)])
def test_one_flipped_bit_names_the_worker_and_the_tensor_on_all_workers_alike(
    num_workers: int, rank: int, name: str, closing: bool
) -> None:
    def change(number: int, model: Any, optimizer: torch.optim.SGD) -> None:
        if number == rank:
            flip(PLACES[name](model, optimizer), bit=7)

    errors = checked(num_workers, change, closing=closing)
    assert {type(error) for error in errors} == {DivergedError}
    assert len({str(error) for error in errors}) == 1
    error = errors[0]
    assert (error.ranks, error.names, error.outvoted) == ((rank,), (name,), True)
    assert (error.step, error.alike_after) == (7 if closing else 10, 0)


def test_of_two_workers_either_may_be_at_fault() -> None:
    def change(rank: int, model: Any, _: torch.optim.SGD) -> None:
        if rank:
            flip(model[0].weight)

    errors = checked(2, change)
    for error in errors:
        assert (error.ranks, error.outvoted) == ((0, 1), False)
        assert "ranks 0 and 1 hold different states after step 10: parameter 0.weight is" in str(
            error
        )
        assert "any of them may be at fault" in str(error)


def test_a_state_that_a_worker_alone_has_or_lacks_is_named() -> None:
    def lacks(rank: int, model: Any, optimizer: torch.optim.SGD) -> None:
        if rank == 1:
            del optimizer.state[model[0].bias]

    error = checked(3, lacks)[0]
    assert (error.ranks, error.names) == ((1,), ("momentum_buffer of 0.bias",))


def test_a_check_is_due_every_so_many_steps_and_not_where_a_run_begins() -> None:
    model, optimizer = trained()
    check = StateCheck(model, optimizer, World(Two(), torch.device("cpu")), every_steps=5)
    due = [step for step in range(10, 22) if check.word(step)]
    assert due == [15, 20], "a run that goes on after step 10 begins with rank 0's state"


class Two(Alone):
    world_size = 2


@pytest.mark.parametrize(("num_workers", "every"), [(1, 5), (2, None)])
def test_nothing_is_digested_where_one_works_alone_or_checks_are_off(
    num_workers: int, every: int | None
) -> None:
    model, optimizer = trained()
    world = World(Two() if num_workers == 2 else Alone(), torch.device("cpu"))
    check = StateCheck(model, optimizer, world, every)
    assert [check.word(step) for step in range(20)] == [0] * 20
    check.judge(5, (1, 2))
    check.compare(20)
    assert check.alike_after is None


def test_the_message_says_who_what_when_and_the_way_out() -> None:
    names = [f"parameter {number}" for number in range(6)]
    error = DivergedError(step=300, alike_after=200, ranks=(2, 5), names=names, outvoted=True)
    assert str(error) == (
        "ranks 2 and 5 hold another state than the other workers after step 300: parameter 0 is "
        "the first tensor that differs (then parameter 1, parameter 2, parameter 3, ...). All were "
        "alike after step 200, and at every checkpoint that there is: each is checked before it is "
        "written. Code that changes the model on some ranks only does this, else a silent error "
        "of a machine: look at the memory and the device of ranks 2 and 5, then run the same "
        "command again"
    )
    assert exit_code_of(error) == ExitCode.FAULT, "no launcher tries again by itself"
    assert is_for_the_user(error)
    single = DivergedError(step=2, alike_after=0, ranks=(1,), names=["x"], outvoted=True)
    assert str(single).startswith("rank 1 holds another state than the other workers after step 2")


DIGESTS = st.dictionaries(st.sampled_from("abc"), st.integers(0, 1), min_size=1)


@given(st.lists(DIGESTS, min_size=2, max_size=7))
def test_the_majority_is_right_and_without_one_nobody_is(digests: list[dict[str, int]]) -> None:
    found = parted(digests)
    alike = [sum(one == other for other in digests) for one in digests]
    assert found.outvoted == (2 * max(alike) > len(digests))
    if found.outvoted:
        assert found.ranks == tuple(
            rank for rank, count in enumerate(alike) if 2 * count <= len(digests)
        )
    else:
        assert found.ranks == tuple(range(len(digests)))
    for name in "abc":
        differs = len({each.get(name) for each in digests}) > 1
        assert differs == (name in found.names)


def test_names_come_in_the_models_order() -> None:
    before = {"z": 1, "a": 1, "m": 1}
    found = parted([before, before, {"z": 1, "a": 2, "m": 3}])
    assert found == Parted((2,), ("a", "m"), outvoted=True)


def test_the_state_is_all_that_has_to_be_the_same() -> None:
    model, optimizer = trained()
    model[0].register_buffer("scratch", torch.zeros(2), persistent=False)
    assert list(replicated_state(model, optimizer)) == [
        *(f"parameter {name}" for name, _ in model.named_parameters()),
        "buffer 0.scratch",
        "buffer 1.running_mean",
        "buffer 1.running_var",
        "buffer 1.num_batches_tracked",
        *(f"momentum_buffer of {name}" for name, _ in model.named_parameters()),
    ]
    without = replicated_state(model, None)
    assert not any("momentum" in name for name in without)


def test_a_parameter_that_the_model_does_not_have_is_known_by_its_number() -> None:
    model, _ = trained()
    own = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([own], lr=0.1, momentum=0.9)
    own.grad = torch.ones(2)
    optimizer.step()
    last = list(replicated_state(model, optimizer))[-1]
    assert last == "momentum_buffer of parameter 0 of the optimizer"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
