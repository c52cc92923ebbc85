"""Schedules against torch's own and against the formulas by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.errors import ConfigError
from distrain.learn.schedules import Constant, Cosine, Linear, Schedule, Step

Torch = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def torch_factors(build: Torch, num_steps: int) -> list[float]:
    """The learning rates that a scheduler of torch gives from a rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)
    found: list[float] = []
    for _ in range(num_steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def factors(schedule: Schedule, num_steps: int) -> list[float]:
    return [schedule(step) for step in range(num_steps)]


def test_constant_is_1() -> None:
    assert factors(Constant(), 3) == [1.0, 1.0, 1.0]


def test_linear_is_equation_8_14_by_hand() -> None:
    # a = 0, 1/4, 1/2, 3/4, 1 and then constant; (1 - a) + a / 5
    schedule = Linear(tau_steps=4, final_factor=0.2)
    assert factors(schedule, 7) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


@given(tau=st.integers(1, 500), final=st.floats(0.0, 1.0), step=st.integers(0, 1_000))
@settings(deadline=None)
def test_linear_stays_between_its_ends_and_ends_at_tau(tau: int, final: float, step: int) -> None:
    schedule = Linear(tau, final)
    assert final - 1e-12 <= schedule(step) <= 1.0
    assert schedule(step + 1) <= schedule(step) + 1e-12
    assert schedule(tau + step) == pytest.approx(final)


def test_linear_is_torchs() -> None:
    theirs = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=7), 12
    )
    assert factors(Linear(7), 12) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("every", "decay"), [(1, 0.5), (3, 0.1), (10, 0.9), (4, 1.0)])
def test_step_is_torchs(every: int, decay: float) -> None:
    theirs = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, every, decay), 25
    )
    assert factors(Step(every, decay), 25) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("total", "final"), [(1, 0.0), (10, 0.0), (17, 0.1)])
def test_cosine_is_torchs_up_to_its_end_and_constant_from_there(total: int, final: float) -> None:
    theirs = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total, final),
        total + 1,
    )
    schedule = Cosine(total, final_factor=final)
    assert factors(schedule, total + 1) == pytest.approx(theirs, rel=1e-9, abs=1e-12)
    assert [schedule(total + more) for more in (1, 5, 1_000)] == pytest.approx([final] * 3)


def test_warm_up_grows_by_equal_parts_and_loses_no_step() -> None:
    schedule = Cosine(total_steps=12, warmup_steps=4, final_factor=0.2)
    assert factors(schedule, 4) == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert schedule(4) == 1.0
    assert schedule(8) == pytest.approx(0.6)
    assert schedule(10) == pytest.approx(0.2 + 0.8 * (1 + math.cos(0.75 * math.pi)) / 2)
    assert schedule(12) == pytest.approx(0.2)


def test_a_run_may_be_all_warm_up() -> None:
    schedule = Cosine(total_steps=2, warmup_steps=2, final_factor=0.1)
    assert factors(schedule, 4) == [0.5, 1.0, 0.1, 0.1]


def test_after_its_warm_up_cosine_is_that_of_the_steps_left() -> None:
    warmed, plain = Cosine(30, warmup_steps=10), Cosine(20)
    assert [warmed(10 + step) for step in range(25)] == pytest.approx(factors(plain, 25))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Linear(0), "Linear: tau_steps is 0; it must be 1 or more"),
        (lambda: Linear(5, -0.1), r"Linear: .*-0\.1.* must lie in \[0, 1\]"),
        (lambda: Linear(5, math.nan), r"Linear: .*nan.* must lie in \[0, 1\]"),
        (lambda: Step(0), "Step: every_steps is 0; it must be 1 or more"),
        (lambda: Step(5, 1.5), r"Step: .*1\.5.* must lie in \[0, 1\]"),
        (lambda: Cosine(0), "Cosine: total_steps is 0; it must be 1 or more"),
        (lambda: Cosine(5, final_factor=2.0), r"Cosine: .*2\.0.* must lie in \[0, 1\]"),
        (lambda: Cosine(5, warmup_steps=6), r"Cosine: warmup_steps is 6.* \[0, total_steps = 5\]"),
        (lambda: Cosine(5, warmup_steps=-1), r"Cosine: warmup_steps is -1"),
    ],
)
def test_what_is_out_of_range_is_refused(build: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
