"""A worker's marks and its pulse, and who is at fault where pulses stand still."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import StorageError
from distrain.config import RunConfig
from distrain.coordinator.hang_guard import guarded, is_debugged
from distrain.coordinator.phases import PHASE, Phase, PhaseClock
from distrain.coordinator.pulse import (
    FIRST_STEP_S,
    MOST_UNSEEN_S,
    Pulse,
    Standstill,
    Worker,
    at_fault,
    hang_text,
    is_halted,
    open_pulse,
    place_of,
    read_pulses,
    tell_hang,
    this_process,
    told_hangs,
)
from distrain.errors import ConfigError, HangError
from distrain.training_run import RunSettings

LIMIT_S = 5.0


def pulse(
    rank: int,
    phase: Phase = Phase.FORWARD,
    *,
    world_size: int = 2,
    count: int = 1,
    steps_done: int = 12,
    steps_here: int = 12,
    exchanges: int = 0,
) -> Pulse:
    worker = Worker(rank, world_size, 1000 + rank, f"host-{rank}", None, LIMIT_S)
    return Pulse(worker, count, steps_done, steps_here, phase, exchanges)


def blamed(*pulses: Pulse, stood_s: float = 6.0, halted: tuple[int, ...] = ()) -> list[int]:
    stood = {one.worker.rank: stood_s for one in pulses}
    return [one.worker.rank for one in at_fault(pulses, stood, halted)]


def test_who_waits_for_one_that_hangs_is_not_blamed() -> None:
    assert blamed(pulse(0, Phase.REDUCTION), pulse(1, Phase.LOADING)) == [1]


def test_nobody_is_blamed_before_its_time() -> None:
    assert blamed(pulse(0, Phase.REDUCTION), pulse(1, Phase.LOADING), stood_s=4.9) == []


def test_nobody_is_blamed_who_waits_for_one_that_moves() -> None:
    waiting, slow = pulse(0, Phase.REDUCTION), pulse(1, Phase.EVALUATION)
    assert at_fault([waiting, slow], {0: 60.0, 1: 0.2}, ()) == []


def test_nobody_is_blamed_who_waits_for_workers_that_are_looked_after_elsewhere() -> None:
    here = [pulse(rank, Phase.REDUCTION, world_size=4) for rank in range(2)]
    assert blamed(*here) == []


def test_a_process_that_a_signal_has_stopped_in_an_exchange_is_blamed() -> None:
    all_wait = [pulse(rank, Phase.REDUCTION, world_size=3) for rank in range(3)]
    assert blamed(*all_wait, halted=(1,)) == [1]


def test_of_workers_that_all_wait_the_ones_furthest_behind_are_blamed() -> None:
    ahead = pulse(0, Phase.REDUCTION, world_size=3, exchanges=4)
    behind = pulse(1, Phase.REDUCTION, world_size=3, exchanges=3)
    a_step_behind = pulse(2, Phase.REDUCTION, world_size=3, exchanges=9, steps_done=11)
    assert blamed(ahead, behind, a_step_behind) == [2]
    assert blamed(ahead, behind, pulse(2, Phase.REDUCTION, world_size=3, exchanges=4)) == [1]
    alike = [pulse(rank, Phase.REDUCTION) for rank in range(2)]
    assert blamed(*alike) == [0, 1]
    assert hang_text(alike, {0: 6.0, 1: 6.0}).endswith("; each waits for others")


def test_a_worker_alone_waits_for_nobody() -> None:
    assert blamed(pulse(0, Phase.REDUCTION, world_size=1)) == [0]


def test_what_is_outside_of_a_run_may_take_any_time() -> None:
    assert blamed(pulse(0, Phase.OUTSIDE, world_size=1), stood_s=1e6) == []


def test_the_first_step_of_a_start_has_more_time() -> None:
    fresh = pulse(0, Phase.FORWARD, steps_here=0)
    assert blamed(fresh, stood_s=FIRST_STEP_S - 1) == []
    assert blamed(fresh, stood_s=FIRST_STEP_S + 1) == [0]


def test_a_hang_is_told_with_rank_host_step_and_phase() -> None:
    assert hang_text([pulse(1)], {1: 7.25}) == (
        "rank 1 on host-1 hangs, in the forward pass of step 13: no sign of life for 7.25 s"
    )
    assert hang_text([pulse(1, Phase.CHECKPOINT)], {1: 7.0}, (1,)) == (
        "rank 1 on host-1 hangs, at the checkpoint after step 12: no sign of life for 7 s "
        "(a signal has stopped its process)"
    )


@pytest.mark.parametrize("phase", Phase)
def test_each_phase_has_words_of_its_own(phase: Phase) -> None:
    others = {place_of(pulse(0, other)) for other in Phase if other != phase}
    assert place_of(pulse(0, phase)) not in others


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 10.0)), max_size=30))
def test_a_standstill_is_what_was_looked_at_since_the_last_sign(
    looks: list[tuple[bool, float]],
) -> None:
    standstill, now_s, count, expected = Standstill(), 0.0, 1, 0.0
    standstill.look([pulse(0, count=count)], now_s)
    for moved, passed_s in looks:
        now_s, count = now_s + passed_s, count + moved
        expected = 0.0 if moved else expected + min(passed_s, MOST_UNSEEN_S)
        stood_s = standstill.look([pulse(0, count=count)], now_s)
        assert stood_s[0] == pytest.approx(expected)


def test_time_in_which_the_launcher_was_frozen_as_well_is_no_hang() -> None:
    standstill, one = Standstill(), pulse(0)
    standstill.look([one], 0.0)
    stood_s = standstill.look([one], 3600.0)  # a virtual machine was moved meanwhile
    assert at_fault([one], stood_s, ()) == []


def test_another_process_reads_the_marks_as_they_are_made(tmp_path: Path) -> None:
    clock, worker = PhaseClock(), this_process(3, 4, "runs/x", LIMIT_S)
    clock.begin(open_pulse(tmp_path, worker))
    clock.takes_up(40)
    clock.enter(Phase.LOADING)
    clock.step_done(41)
    clock.enter(Phase.BACKWARD)
    before = clock.begin_exchange()
    program = (
        "import sys; from pathlib import Path; from distrain.coordinator.pulse import read_pulses\n"
        "(one,) = read_pulses(Path(sys.argv[1]))\n"
        "w = one.worker\n"
        "print(w.rank, w.world_size, w.pid, w.folder, w.limit_s, one.steps_done, one.steps_here,\n"
        "      one.phase.name, one.exchanges, 'torch' in sys.modules)"
    )
    read = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    said = f"3 4 {os.getpid()} {Path.cwd() / 'runs/x'} {LIMIT_S} 41 1 REDUCTION 1 False\n"
    assert read.stdout == said
    clock.end_exchange(before)
    (one,) = read_pulses(tmp_path)
    assert one.phase == Phase.BACKWARD
    clock.end()
    clock.enter(Phase.EVALUATION)  # of the user's own: nobody looks any more
    (one,) = read_pulses(tmp_path)
    assert one.phase == Phase.OUTSIDE


def test_a_pulse_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*pulse-0"):
        open_pulse(tmp_path / "gone", this_process(0, 1, None, LIMIT_S))


def test_every_mark_is_a_sign_of_life() -> None:
    clock = PhaseClock()
    counts = set()
    for phase in (Phase.FORWARD, Phase.FORWARD, Phase.EVALUATION):
        clock.enter(phase)
        counts.add(clock.words[0])
    assert len(counts) == 3


def test_what_another_thread_exchanges_is_no_phase_of_the_run() -> None:
    clock = PhaseClock()
    clock.enter(Phase.BACKWARD)

    def exchange() -> None:
        assert clock.begin_exchange() is None
        assert clock.words[PHASE] == Phase.BACKWARD
        clock.end_exchange(None)

    thread = threading.Thread(target=exchange)
    thread.start()
    thread.join()
    assert clock.phase == Phase.BACKWARD
    assert clock.begin_exchange() == Phase.BACKWARD


def test_time_is_counted_where_it_was_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [0]
    monkeypatch.setattr(time, "perf_counter_ns", lambda: now_ns[0])
    clock = PhaseClock()
    for phase, spent_us in ((Phase.FORWARD, 3), (Phase.BACKWARD, 5), (Phase.FORWARD, 7)):
        clock.enter(phase)
        now_ns[0] += 1000 * spent_us
    assert clock.take_us(Phase.FORWARD) == 10
    assert clock.take_us(Phase.BACKWARD) == 5
    assert clock.take_us(Phase.FORWARD) == 0


def test_a_process_is_halted_between_two_signals() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            assert not is_halted(process.pid)
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            assert is_halted(process.pid)
        finally:
            process.kill()
    assert not is_halted(process.pid)


def test_a_hang_is_told_to_the_start_after_it_once(tmp_path: Path) -> None:
    tell_hang(tmp_path, "it hangs", [pulse(1, Phase.LOADING)])
    said = {"text": "it hangs", "rank": 1, "host": "host-1", "step": 13, "phase": "loading"}
    assert told_hangs(tmp_path) == [said]
    assert told_hangs(tmp_path) == []
    assert told_hangs(None) == []


def test_a_person_in_a_debugger_is_no_hang() -> None:
    frames: list[bool] = []
    source = "def prompt(look):\n    look()\n"
    module: dict[str, object] = {"__name__": "pdb"}
    exec(source, module)
    prompt = module["prompt"]
    assert callable(prompt)
    prompt(lambda: frames.append(is_debugged(sys._getframe())))
    assert frames == [True]
    assert not is_debugged(sys._getframe())


@pytest.mark.parametrize("settings", [RunConfig, RunSettings])
def test_a_limit_below_0_is_refused(settings: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match=r"hang_timeout_s is -1; it must be 0 or more"):
        settings(hang_timeout_s=-1)
    assert settings(hang_timeout_s=0)
    assert settings(hang_timeout_s=None)


def test_a_watch_that_is_paused_ends_nothing() -> None:
    noted: list[HangError] = []
    clock = PhaseClock()
    with guarded(clock, this_process(0, 1, None, 0.04), noted.append) as guard, guard.paused():
        clock.step_done(1)  # the first step would have more time
        time.sleep(0.3)
        clock.enter(Phase.OUTSIDE)  # the pause may end long before the watch does
    assert noted == []
