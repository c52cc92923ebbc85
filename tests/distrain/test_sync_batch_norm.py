"""Batch norm over the whole batch, against torch's own in one pass over all samples."""

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from distrain.errors import ConfigError, ProgramError
from distrain.parallel.communicator import Alone, Communicator
from distrain.parallel.split import owned_range
from distrain.parallel.sync_batch_norm import SynchronizedNorms
from tests.conftest import PROGRAMS, Completed
from tests.thread_workers import ThreadCommunicator, ThreadGroup, on_threads

CPU = torch.device("cpu")
Build = Callable[[], nn.Module]
Values = dict[str, torch.Tensor]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = block(4, 4), block(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + self.first(x)
        outputs: torch.Tensor = y + self.last(y).relu()
        return outputs


class Branching(nn.Module):
    """Four ways of unlike length that meet again, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = block(4, 6), nn.Conv2d(4, 6, 1)
        self.c = nn.Sequential(block(4, 6), nn.Tanh(), nn.Conv2d(6, 6, 1), block(6, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.a(x).relu() + self.b(x) * self.c(x) + self.a(x * 0.5).sigmoid()
        return outputs


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.norm(self.norm(x).square() + x)
        return outputs


class Checkpointed(nn.Module):
    """Its two halves are computed again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.recompute: Callable[..., torch.Tensor] = partial(checkpoint, use_reentrant=reentrant)
        self.enter = nn.Conv2d(4, 4, 1)
        self.first = nn.Sequential(Residual(), nn.BatchNorm2d(4, momentum=None))
        self.last = Branching()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.recompute(self.first, self.enter(x))
        outputs: torch.Tensor = self.recompute(self.last, y)
        return outputs


def block(num_in: int, num_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(num_in, num_out, 3, padding=1, bias=False), nn.BatchNorm2d(num_out)
    )


def frozen() -> nn.Module:
    model = nn.Sequential(block(4, 4), nn.ReLU(), block(4, 4))
    model[2].eval()
    return model


NETS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(5), (5,)),
    "1d over a sequence": (lambda: nn.BatchNorm1d(5), (5, 7)),
    "2d": (lambda: nn.BatchNorm2d(4), (4, 3, 5)),
    "3d": (lambda: nn.BatchNorm3d(4, momentum=0.3, eps=1e-2), (4, 2, 3, 2)),
    "cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), (4, 3, 3)),
    "not affine": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)),
        (4, 3, 3),
    ),
    "no running averages": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 3, 3)),
    "frozen": (frozen, (4, 3, 3)),
    "residual": (Residual, (4, 5, 5)),
    "branching": (Branching, (4, 5, 5)),
    "twice": (Twice, (4, 3, 3)),
    "checkpointed": (lambda: Checkpointed(reentrant=False), (4, 5, 5)),
    "checkpointed, reentrant": (lambda: Checkpointed(reentrant=True), (4, 5, 5)),
}


def weigh(outputs: torch.Tensor, first: int) -> Any:
    """A loss that is another function of each sample, so that no gradient cancels."""
    places = torch.arange(first, first + len(outputs))
    return (outputs.flatten(1).cos().sum(1) * (1.0 + 0.1 * places)).sum()


def by_torch(model: nn.Module, x: torch.Tensor) -> Values:
    """One pass over all samples, nothing computed again: that would move statistics once more."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
    if isinstance(model, Checkpointed):
        model.recompute = lambda part, x: part(x)
    outputs = model(x)
    weigh(outputs, 0).backward()
    assert x.grad is not None
    found = {"outputs": outputs.detach(), "of the inputs": x.grad}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | dict(model.named_buffers())


def synchronised(
    model: nn.Module, x: torch.Tensor, num_leaves: int, worker: Communicator, *, steps: int = 1
) -> Values:
    """The same by one of the workers, in micro-batches; gradients of its own ones are summed."""
    model = copy.deepcopy(model)
    norms = SynchronizedNorms(model, worker, CPU)
    owned = owned_range(num_leaves, worker.rank, worker.world_size)
    parts, firsts = x.tensor_split(num_leaves), [0]
    for part in parts:
        firsts.append(firsts[-1] + len(part))
    inputs = [parts[number].clone().requires_grad_() for number in owned]
    found: dict[int, torch.Tensor] = {}

    def work(place: int) -> Callable[[nn.Module], None]:
        def forward_backward(module: nn.Module) -> None:
            module.zero_grad()
            outputs = module(inputs[place])
            found[place] = outputs.detach()
            weigh(outputs, firsts[owned[place]]).backward()

        return forward_backward

    for step in range(steps):
        modules = norms.run(step, num_leaves, [work(place) for place in range(len(owned))])
        norms.apply()
    values: Values = {name: b.clone() for name, b in model.named_buffers()}
    for number, place in zip(owned, range(len(owned)), strict=True):
        gradient = inputs[place].grad
        assert gradient is not None
        values |= {f"{number} outputs": found[place], f"{number} of the inputs": gradient}
        for name, parameter in modules[place].named_parameters():
            if parameter.grad is not None:
                values[f"{number} {name}"] = parameter.grad
    return values


def whole(by_rank: list[Values], num_leaves: int, model: nn.Module) -> Values:
    """The workers' micro-batches put together."""
    together = {name: value for values in by_rank for name, value in values.items()}
    found = {
        what: torch.cat([together[f"{number} {what}"] for number in range(num_leaves)])
        for what in ("outputs", "of the inputs")
    }
    for name, _ in model.named_parameters():
        if f"0 {name}" in together:
            found[name] = sum(
                (together[f"{number} {name}"].double() for number in range(num_leaves)),
                torch.zeros((), dtype=torch.float64),
            )
    return found | {name: together[name] for name, _ in model.named_buffers()}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NETS)
def test_outputs_gradients_and_running_statistics_are_torchs_over_the_whole_batch(
    name: str, world_size: int
) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    # In float64 nothing but the algebra is left to differ.
    model, x = build().double(), torch.randn(14, *shape, dtype=torch.float64) * 3 + 2
    expected = by_torch(model, x)
    by_rank = on_threads(ThreadGroup(world_size), lambda worker: synchronised(model, x, 4, worker))
    found = whole(by_rank, 4, model)
    assert set(found) == set(expected)
    for what, value in expected.items():
        torch.testing.assert_close(found[what], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_leaves", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NETS)
def test_every_number_of_workers_gives_the_same_bits(name: str, num_leaves: int) -> None:
    torch.manual_seed(1)
    build, shape = NETS[name]
    model, x = build(), torch.randn(4 * num_leaves - 1, *shape) * 3 + 100

    def bits(world_size: int) -> Values:
        # With 4 workers and fewer micro-batches, some own none and still attend.
        found = on_threads(
            ThreadGroup(world_size), lambda w: synchronised(model, x, num_leaves, w, steps=2)
        )
        return whole(found, num_leaves, model)

    alone = bits(1)
    for world_size in (2, 3, 4):
        found = bits(world_size)
        assert [what for what in alone if not torch.equal(alone[what], found[what])] == []


Work = Callable[[nn.Module, int], Any]


def run(
    model: nn.Module, num_leaves: int, worker: Communicator, work: Work, *, step: int = 0
) -> SynchronizedNorms:
    """One step, in which `work(module, micro_batch)` gives a loss."""
    norms = SynchronizedNorms(model, worker, CPU)
    owned = owned_range(num_leaves, worker.rank, worker.world_size)

    def one(number: int) -> Callable[[nn.Module], None]:
        return lambda module: work(module, number).backward()

    norms.run(step, num_leaves, [one(number) for number in owned])
    return norms


def raised(world_size: int, kind: type[Exception], work: Callable[[Communicator], Any]) -> set[str]:
    """What all the workers have raised."""

    def caught(worker: Communicator) -> str:
        with pytest.raises(kind) as error:
            work(worker)
        return str(error.value)

    return set(on_threads(ThreadGroup(world_size), caught))


class Sometimes(nn.Module):
    """Has a norm in a branch that only micro-batches of positive inputs take."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.rarely = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rarely(x) if x[0, 0] > 0 else x
        outputs: torch.Tensor = self.always(x)
        return outputs


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_a_norm_that_only_some_micro_batches_take_is_an_error_on_all_workers(
    world_size: int,
) -> None:
    def work(module: nn.Module, number: int) -> torch.Tensor:
        outputs: torch.Tensor = module(torch.full((2, 3), -1.0 if number == 1 else 1.0))
        return outputs.sum()

    said = raised(world_size, ProgramError, lambda w: run(Sometimes(), 4, w, work, step=6))
    assert said == {
        "step 7: the micro-batches part: while 1 at batch norm always (forward); 0, 2, 3 at batch "
        'norm rarely (forward). With batch_norm = "sync" all of them have to take the same batch '
        "norms in the same order: keep batch norms out of branches that only some take, or choose "
        'batch_norm = "micro"'
    }


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_micro_batches_that_end_while_others_still_meet_are_an_error_on_all_workers(
    world_size: int,
) -> None:
    def work(module: nn.Module, number: int) -> torch.Tensor:
        x = torch.randn(2, 3, requires_grad=True)
        outputs: torch.Tensor = module(x) if number < 2 else x * 2
        return outputs.sum()

    said = raised(world_size, ProgramError, lambda w: run(nn.BatchNorm1d(3), 3, w, work))
    assert len(said) == 1
    assert "while 2 at the end; 0, 1 at batch norm" in said.pop()


@pytest.mark.parametrize("world_size", [1, 2])
def test_one_value_in_the_whole_batch_is_an_error_on_all_workers(world_size: int) -> None:
    def work(module: nn.Module, _: int) -> torch.Tensor:
        outputs: torch.Tensor = module(torch.randn(1, 3))
        return outputs.sum()

    def model() -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(3))

    said = raised(world_size, ProgramError, lambda w: run(model(), 1, w, work))
    assert len(said) == 1
    assert "step 1: the whole batch has a single value a channel at the batch norm 0" in said.pop()
    on_threads(
        ThreadGroup(world_size), lambda w: run(model(), 2, w, work)
    )  # two of one sample each are enough


def test_a_step_that_uses_another_copy_than_the_one_it_is_given_is_refused() -> None:
    first = nn.Linear(3, 3)
    model = nn.Sequential(first, nn.BatchNorm1d(3))

    def through_the_norm(_: nn.Module, __: int) -> torch.Tensor:
        outputs: torch.Tensor = model(torch.randn(4, 3))
        return outputs.sum()

    def past_it(module: nn.Module, _: int) -> torch.Tensor:
        outputs: torch.Tensor = module(torch.randn(4, 3))
        return outputs.sum() + first.weight.square().sum()

    for work, what in ((through_the_norm, "batch norm 1 was"), (past_it, "parameter 0.weight was")):
        (said,) = raised(1, ProgramError, partial(run, model, 3, work=work))
        assert said.startswith(what)
        assert "used from another model than the one that the micro-batch step was given" in said
        run(model, 1, Alone(), work)  # where there is no other, it works
        model.zero_grad()


class NotToBeCopied(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(3))
        self.lock = threading.Lock()


def test_a_model_that_cant_be_copied_is_refused_where_copies_are_needed() -> None:
    def work(module: nn.Module, _: int) -> torch.Tensor:
        outputs: torch.Tensor = module(torch.randn(4, 3))
        return outputs.sum()

    said = raised(2, ConfigError, lambda w: run(NotToBeCopied(), 4, w, work))
    (text,) = said
    assert text.startswith("the model can't be copied (TypeError: cannot pickle")
    assert "start as many workers as there are micro-batches, or choose" in text
    on_threads(ThreadGroup(2), lambda w: run(NotToBeCopied(), 2, w, work))


class OfItsOwn(nn.BatchNorm1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (OfItsOwn(3), r"1 \(OfItsOwn\) is a batch norm with a forward of its own"),
        (
            nn.InstanceNorm1d(3, track_running_stats=True),
            r"1 \(InstanceNorm1d\) has running statistics of each micro-batch",
        ),
    ],
)
def test_what_can_not_be_synchronised_is_refused_by_name(module: nn.Module, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        SynchronizedNorms(nn.Sequential(nn.Linear(3, 3), module), Alone(), CPU)


def test_the_model_stays_the_users_own_during_a_step_and_after_it() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))
    before = (repr(model), list(model.state_dict()), type(model[1]), dict(vars(model[1])))

    def work(module: nn.Module, number: int) -> torch.Tensor:
        assert repr(module) == before[0]
        assert list(module.state_dict()) == before[1]
        assert isinstance(module, nn.Sequential)
        assert type(module[1]) is nn.BatchNorm2d
        outputs: torch.Tensor = module(torch.randn(3, 2, 4, 4))
        if number == 2:
            raise ValueError("bad luck")
        return outputs.sum()

    for num_leaves, kind in ((3, ValueError), (1, None)):
        if kind is None:
            run(model, num_leaves, Alone(), work)
        else:
            assert raised(1, kind, partial(run, model, num_leaves, work=work)) == {"bad luck"}
        assert (repr(model), list(model.state_dict()), type(model[1])) == before[:3]
        assert dict(vars(model[1])) == before[3]


def test_an_input_of_other_channels_is_an_error_that_names_the_norm() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))

    def work(module: nn.Module, _: int) -> torch.Tensor:
        outputs: torch.Tensor = module(torch.randn(4, 5))
        return outputs.sum()

    (said,) = raised(1, ValueError, lambda w: run(model, 2, w, work))
    assert said == "batch norm 1 is of 3 channels, and its input has the shape (4, 5)"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_by_statistics_in_float32(kind: torch.dtype) -> None:
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.BatchNorm2d(4)), (torch.randn(8, 4, 5, 5) * 0.5 + 30).to(kind)
    whole = copy.deepcopy(model)
    expected = whole(x.float())
    expected.cos().sum().backward()
    parts = x.chunk(4)

    def work(module: nn.Module, number: int) -> torch.Tensor:
        outputs: torch.Tensor = module(parts[number])
        assert outputs.dtype == kind
        torch.testing.assert_close(
            outputs.float(), expected.detach().chunk(4)[number], rtol=2e-2, atol=2e-2
        )
        return outputs.float().cos().sum()

    found = []
    for world_size in (1, 2, 4):
        for norms in on_threads(
            ThreadGroup(world_size), lambda w: run(copy.deepcopy(model), 4, w, work)
        ):
            norms.apply()
            buffers = norms._norms[0].state_dict()
            torch.testing.assert_close(
                buffers["running_mean"], whole[0].running_mean, rtol=1e-5, atol=1e-5
            )
            torch.testing.assert_close(
                buffers["running_var"], whole[0].running_var, rtol=1e-5, atol=1e-5
            )
            found.append(buffers)
    assert all(torch.equal(one["running_var"], found[0]["running_var"]) for one in found)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_variance_of_large_values_is_no_difference_of_large_numbers(
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(16, 4, 6, 6) * 0.5 + 3000).contiguous(memory_format=layout)
    parts, variance = x.chunk(4), x.double().var((0, 2, 3))

    def work(module: nn.Module, number: int) -> torch.Tensor:
        outputs: torch.Tensor = module(parts[number])
        return outputs.sum()

    model = nn.Sequential(nn.BatchNorm2d(4, momentum=1.0))
    run(model, 4, Alone(), work).apply()
    found = model[0].running_var
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), variance, rtol=1e-6, atol=0)
    naive = (x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()).double()
    assert ((naive - variance).abs() > 0.01 * variance).any()


def test_norms_within_a_sample_need_no_meeting_but_the_last() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.LayerNorm([4, 3, 3])
    )

    def work(module: nn.Module, _: int) -> torch.Tensor:
        outputs: torch.Tensor = module(torch.randn(3, 2, 3, 3))
        return outputs.square().sum()

    def exchanges(worker: ThreadCommunicator) -> int:
        run(copy.deepcopy(model), 4, worker, work)
        return worker.num_exchanges

    assert on_threads(ThreadGroup(2), exchanges) == [1, 1]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("branch", "step 1: the micro-batches part: while "),
        ("exception", "RuntimeError: bad luck with row 15"),
    ],
)
def test_workers_that_part_end_with_what_went_wrong(
    distrain: Callable[..., Completed], workers: int, which: str, said: str
) -> None:
    program = PROGRAMS / "norm_branches.py"
    done = distrain("launch", "--workers", workers, program, which)
    assert done.returncode == 70
    assert said in done.stderr
