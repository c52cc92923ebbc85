"""Which rank is slow, and in what, from what all have told."""

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrain.coordinator.phases import Phase
from distrain.coordinator.slow_ranks import (
    LEAST_S,
    RATIO,
    REPORTED,
    WINDOW_S,
    PhaseTimes,
    Window,
    phase_of,
    slow_ranks,
)

EVEN = [2.0, 2.0, 2.0, 2.0]


def test_a_rank_is_slow_in_its_phase_alone() -> None:
    seconds = {
        Phase.LOADING: [0.001] * 4,
        Phase.FORWARD: [0.02, 0.021, 0.05, 0.019],
        Phase.REDUCTION: [0.03, 0.03, 0.0, 0.03],
    }
    (slow,) = slow_ranks(seconds, EVEN)
    assert (slow.rank, slow.phase) == (2, Phase.FORWARD)
    assert (slow.seconds, slow.usual_s) == (0.05, 0.02)


def test_of_two_workers_the_one_that_takes_longer_is_slow() -> None:
    assert [one.rank for one in slow_ranks({Phase.LOADING: [0.1, 0.01]}, [1.0, 1.0])] == [0]


def test_who_has_twice_the_micro_batches_may_take_twice_the_time() -> None:
    assert slow_ranks({Phase.BACKWARD: [0.2, 0.1, 0.1]}, [2.0, 1.0, 1.0]) == []
    slow = slow_ranks({Phase.BACKWARD: [0.2, 0.2, 0.1]}, [2.0, 1.0, 1.0])
    assert [one.rank for one in slow] == [1]
    # The update is the same for all.
    assert [one.rank for one in slow_ranks({Phase.UPDATE: [0.2, 0.1]}, [2.0, 1.0])] == [0]


def test_who_has_no_micro_batch_is_not_judged_and_judges_nobody() -> None:
    assert slow_ranks({Phase.FORWARD: [0.1, 0.0]}, [1.0, 0.0]) == []


@pytest.mark.parametrize("phase", [Phase.REDUCTION, Phase.CHECKPOINT, Phase.LOGGING])
def test_waiting_and_rank_0s_writing_are_nobodys_slowness(phase: Phase) -> None:
    assert slow_ranks({phase: [5.0, 0.01, 0.01, 0.01]}, EVEN) == []


def test_milliseconds_are_no_slowness_whatever_their_ratio() -> None:
    assert slow_ranks({Phase.FORWARD: [0.009, 0.0001]}, [1.0, 1.0]) == []


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=9))
def test_slow_is_who_is_beyond_the_median_of_the_others_by_factor_and_difference(
    times: list[float],
) -> None:
    expected = []
    for rank, spent in enumerate(times):
        usual = median(times[:rank] + times[rank + 1 :])
        if spent > RATIO * usual and spent > usual + LEAST_S:
            expected.append(rank)
    found = slow_ranks({Phase.FORWARD: times}, [1.0] * len(times))
    assert [one.rank for one in found] == expected


def windows(step_s: float, steps: int) -> list[tuple[int, Window]]:
    """Those of two workers, one of which takes twice as long for its one micro-batch."""
    now_s = [0.0]
    times = PhaseTimes(lambda: now_s[0])
    found = []
    for step in range(steps):
        now_s[0] += step_s
        spent = {Phase.FORWARD: (0.2, 0.4), Phase.REDUCTION: (0.2, 0.0)}.get(phase_of(step), (0, 0))
        # What it says of a phase is of all steps since it said so last.
        told = [round(1e6 * s * len(REPORTED)) for s in spent]
        window = times.add(step, told, [1, 1])
        if window is not None:
            found.append((step, window))
    return found


@pytest.mark.parametrize("step_s", [0.01, 0.5, 3.0])
def test_a_window_has_each_phase_as_often_and_gives_seconds_a_step(step_s: float) -> None:
    turn = len(REPORTED)
    found = windows(step_s, turn + 2 * max(turn, int(1.2 * WINDOW_S / step_s)))
    assert found
    for _, window in found:
        assert window.steps % turn == 0
        assert window.steps * step_s >= WINDOW_S - 1e-6
        assert window.seconds[Phase.FORWARD] == pytest.approx([0.2, 0.4])
        assert window.seconds[Phase.REDUCTION] == pytest.approx([0.2, 0.0])
        assert [(one.rank, one.phase) for one in window.slow] == [(1, Phase.FORWARD)]


def test_the_first_turn_has_the_start_in_it_and_does_not_count() -> None:
    (first, window), *_ = windows(5.0, 40)
    assert first - window.steps + 1 == len(REPORTED)
