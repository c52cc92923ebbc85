"""The loss scale's rule, against torch's own kernel for it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distrain.coordinator.run_state import RunState
from distrain.learn import loss_scale
from distrain.learn.loss_scale import LossScale


@given(
    overflows=st.lists(st.booleans(), max_size=60),
    interval=st.integers(1, 7),
)
@settings(deadline=None)
def test_scale_and_good_steps_move_as_torchs_grad_scaler_moves_them(
    overflows: list[bool], interval: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_scale, "GROWTH_INTERVAL", interval)
        ours = LossScale()
        scale, tracker = torch.tensor(65536.0), torch.tensor(0, dtype=torch.int32)
        for overflow in overflows:
            ours = ours.after(overflow=overflow)
            found = torch.tensor(float(overflow))
            torch._amp_update_scale_(scale, tracker, found, 2.0, 0.5, interval)
            assert (ours.scale, ours.good_steps) == (scale.item(), tracker.item())


def test_the_numbers_are_the_defaults_of_torchs_grad_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu")
    assert scaler.get_growth_factor() == 1 / scaler.get_backoff_factor() == loss_scale.FACTOR
    assert scaler.get_growth_interval() == loss_scale.GROWTH_INTERVAL
    assert scaler._init_scale == LossScale().scale


def test_the_scale_grows_after_2000_good_steps_and_not_before() -> None:
    scale = LossScale()
    for _ in range(1999):
        scale = scale.after(overflow=False)
    assert scale == LossScale(65536.0, 1999)
    assert scale.after(overflow=False) == LossScale(131072.0, 0)
    assert scale.after(overflow=True) == LossScale(32768.0, 0)


@given(st.lists(st.booleans(), max_size=30))
def test_the_scale_is_a_power_of_two_so_that_dividing_by_it_is_exact(overflows: list[bool]) -> None:
    scale = LossScale()
    for overflow in overflows:
        scale = scale.after(overflow=overflow)
        assert math.frexp(scale.scale)[0] == 0.5


def test_a_scale_is_spent_below_1() -> None:
    assert not LossScale(1.0).is_spent
    assert LossScale(1.0).after(overflow=True).is_spent


@pytest.mark.parametrize("scale", [None, LossScale(1024.0, 7)])
def test_the_scale_is_part_of_a_runs_state(scale: LossScale | None) -> None:
    state = RunState(step=3, loss_scale=scale)
    assert RunState.from_json(state.to_json()).loss_scale == scale
