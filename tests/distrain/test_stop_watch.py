"""Stops: a signal or the time limit raises a flag at once, whatever the main thread is doing."""

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distrain.coordinator.stops import (
    BEGAN,
    RELAY,
    TIME_LIMIT,
    WATCHED,
    InterruptedAgainError,
    StoppedError,
    StopWatch,
    answer_to,
    handlers_as_before,
    reason_of,
    time_left,
)
from tests.conftest import TIMEOUT_S, clean_environment

SIGNALS = [int(number) for number in WATCHED]

BUSY_S = 10.0
"""So much later than promised a thread may have its turn on a busy machine."""


def no_save(reason: str) -> None:
    raise AssertionError(f"nobody asked to save for {reason}")


def watch(
    *,
    max_time_s: float | None = None,
    grace_s: float = 60.0,
    save_last: Callable[[str], None] = no_save,
    **options: Any,
) -> StopWatch:
    return StopWatch(grace_s, max_time_s, save_last, **options)


def comes_true(condition: Callable[[], bool], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


class Clock:
    """Stands in for the watcher's `time`, and stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        """The watcher's waits are real ones: a signal that raises no flag has it look again."""
        self.now += seconds
        os.kill(os.getpid(), RELAY)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("distrain.coordinator.stops.time", clock)
    return clock


def until_delivered(number: int, thread: int) -> None:
    """Two signals of a number that wait for a thread are one to the kernel."""
    status = Path(f"/proc/self/task/{thread}/status")

    def is_pending() -> bool:
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("SigPnd:")]
        return bool(int(line.split()[1], 16) >> (number - 1) & 1)

    assert comes_true(lambda: not is_pending())


Signals = tuple[Any, ...]


def signals_as_they_are() -> Signals:
    """Handlers, the wake-up file and the mask."""
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return (*[signal.getsignal(number) for number in WATCHED], wakeup, mask)


@pytest.fixture(autouse=True)
def _own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test does to them, the next one finds what was there before."""
    monkeypatch.delenv(BEGAN, raising=False)
    *handlers, wakeup, mask = signals_as_they_are()
    yield
    signal.set_wakeup_fd(wakeup)
    for number, handler in zip(WATCHED, handlers, strict=True):
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


FLAGS = st.lists(st.sampled_from([0, 0, TIME_LIMIT, *SIGNALS]), max_size=9)


@given(flags=FLAGS, data=st.data())
def test_the_reason_is_the_same_on_every_rank_in_whatever_order_the_flags_come(
    flags: list[int], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(flags))
    assert reason_of(shuffled) == reason_of(flags)
    assert (reason_of(flags) is None) == (not any(flags))


@given(flags=FLAGS)
def test_a_signal_is_named_before_the_time_limit(flags: list[int]) -> None:
    names = {signal.Signals(flag).name for flag in flags if flag in SIGNALS}
    if names:
        assert reason_of(flags) in names
    elif TIME_LIMIT in flags:
        assert reason_of(flags) == "the time limit"


def test_reasons_are_words_that_a_person_knows() -> None:
    assert reason_of([0, signal.SIGTERM, 0]) == "SIGTERM"
    assert reason_of([TIME_LIMIT, signal.SIGUSR1]) == "SIGUSR1"
    assert reason_of([]) is None


SECONDS = st.floats(0, 1e7)


def here(began: float) -> str:
    return f"{began!r} {socket.gethostname()}"


@given(limit=SECONDS, now=SECONDS)
def test_without_a_launcher_the_whole_time_is_left(limit: float, now: float) -> None:
    assert time_left(limit, {}, now) == limit
    assert time_left(None, {BEGAN: here(now)}, now) is None


@given(limit=SECONDS, began=SECONDS, passed=SECONDS)
def test_time_counts_from_the_launchers_start(limit: float, began: float, passed: float) -> None:
    left = time_left(limit, {BEGAN: here(began)}, began + passed)
    assert left == pytest.approx(limit - passed, abs=1e-6)


@given(limit=SECONDS, now=SECONDS, began=st.floats())
def test_another_hosts_clock_says_nothing(limit: float, now: float, began: float) -> None:
    assert time_left(limit, {BEGAN: f"{began!r} another-host"}, now) == limit


@pytest.mark.parametrize("value", ["", "12.5", f"soon {socket.gethostname()}"])
def test_a_begin_that_is_none_of_ours_says_nothing(value: str) -> None:
    assert time_left(60.0, {BEGAN: value}, 100.0) == 60.0


@pytest.mark.parametrize("number", WATCHED)
def test_a_signal_raises_the_flag(number: signal.Signals) -> None:
    with watch() as stops:
        assert stops.flag == 0
        os.kill(os.getpid(), number)
        assert comes_true(lambda: stops.flag == number)


def test_the_flag_is_raised_while_the_main_thread_is_deep_in_c() -> None:
    libc = ctypes.CDLL(None)  # gives the GIL back, as torch's exchanges and kernels do
    mutex = ctypes.create_string_buffer(256)
    libc.pthread_mutex_lock(mutex)
    seen: list[tuple[bool, bool]] = []
    back = threading.Event()

    def ask(stops: StopWatch) -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append((comes_true(lambda: stops.flag == signal.SIGTERM), back.is_set()))
        libc.pthread_mutex_unlock(mutex)

    with watch() as stops:
        asking = threading.Thread(target=ask, args=(stops,))
        asking.start()
        # Waits for the other thread: it never comes back for a signal, so no Python handler runs.
        libc.pthread_mutex_lock(mutex)
        back.set()
        asking.join()
    assert seen == [(True, False)]


def test_the_first_who_asks_is_the_one_who_is_named(clock: Clock) -> None:
    with watch(max_time_s=500.0, grace_s=4000.0) as stops:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert comes_true(lambda: stops.flag == signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        clock.move(500.0)
        time.sleep(0.2)
        assert stops.flag == signal.SIGUSR1


def handler(number: int, frame: FrameType | None) -> None:
    raise AssertionError(f"signal {number} came to who was there before, at {frame}")


@pytest.mark.parametrize("error", [None, StoppedError("SIGTERM"), InterruptedAgainError()])
def test_signals_are_given_back_as_they_were(error: BaseException | None) -> None:
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    with ear, mouth:
        signal.set_wakeup_fd(mouth.fileno())
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGHUP])
        before = signals_as_they_are()
        with suppress(StoppedError, InterruptedAgainError), watch():
            during = signals_as_they_are()
            assert all(now is not then for now, then in zip(during, before, strict=True))
            assert signal.SIGUSR1 not in during[-1]
            if error is not None:
                raise error
        assert signals_as_they_are() == before
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])


def open_sockets() -> set[str]:
    """Each by a number of its own."""
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder itself, which is closed by now
            found.add(str(path.readlink()))
    return {name for name in found if name.startswith("socket:")}


def test_the_watchers_thread_and_files_end_with_the_block() -> None:
    # What others have left in this process may end meanwhile, but nothing may be added.
    threads, sockets = set(threading.enumerate()), open_sockets()
    for _ in range(3):
        with watch(max_time_s=100.0):
            (added,) = set(threading.enumerate()) - threads
            assert added.name == "distrain-stops"
            assert len(open_sockets() - sockets) == 2
    assert set(threading.enumerate()) <= threads
    assert open_sockets() <= sockets


def interrupt(pause_s: float) -> None:
    """Ctrl-C twice, and time for it to take effect."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(pause_s)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.5)


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
def test_a_second_ctrl_c_ends_the_run_at_once(pause_s: float) -> None:
    with watch(), pytest.raises(InterruptedAgainError, match="after the last checkpoint is lost"):
        interrupt(pause_s)


@pytest.mark.parametrize("watcher_is_late", [False, True])
def test_two_ctrl_cs_during_a_long_call_end_the_run_after_it(
    watcher_is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(256)
    libc.pthread_mutex_lock(mutex)
    main, ready, over = threading.main_thread(), threading.Event(), threading.Event()
    if watcher_is_late:
        late = SimpleNamespace(select=lambda *given: over.wait() and select.select(*given))
        monkeypatch.setattr("distrain.coordinator.stops.select", late)

    def ask() -> None:
        ready.wait()
        for _ in range(2):
            time.sleep(0.2)
            signal.pthread_kill(main.ident or 0, signal.SIGINT)
            until_delivered(signal.SIGINT, main.native_id or 0)
        libc.pthread_mutex_unlock(mutex)

    def call() -> None:
        ready.set()
        libc.pthread_mutex_lock(mutex)
        time.sleep(0.5)

    asking = threading.Thread(target=ask)
    asking.start()
    with watch():
        with pytest.raises(InterruptedAgainError):
            call()
        over.set()
    asking.join()


def test_one_ctrl_c_and_other_signals_after_it_interrupt_nothing() -> None:
    with watch() as stops:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        assert comes_true(lambda: stops.flag != 0)
        assert stops.flag == signal.SIGINT


@pytest.mark.parametrize("number", WATCHED)
def test_a_signal_that_waited_while_it_was_blocked_is_taken_up(number: signal.Signals) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    signal.raise_signal(number)
    assert number in signal.sigpending()
    with watch() as stops:
        assert comes_true(lambda: stops.flag == number)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) >= set(WATCHED)
    assert number not in signal.sigpending()


def test_a_closed_terminal_is_nothing_to_who_was_started_by_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with watch() as stops:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert comes_true(lambda: stops.flag == signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_the_time_limit_raises_a_flag_of_its_own() -> None:
    began = time.monotonic()
    with watch(max_time_s=0.3) as stops:
        assert comes_true(lambda: stops.flag == TIME_LIMIT)
        assert 0.3 <= time.monotonic() - began < 0.3 + BUSY_S


def test_the_time_limit_raises_no_flag_before_its_time(clock: Clock) -> None:
    with watch(max_time_s=1000.0, grace_s=4000.0) as stops:
        clock.move(500.0)
        time.sleep(0.2)
        assert stops.flag == 0
        clock.move(500.0)
        assert comes_true(lambda: stops.flag == TIME_LIMIT)


def test_time_that_the_launcher_has_spent_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BEGAN, here(time.monotonic() - 50.0))
    with watch(max_time_s=49.0) as late, watch(max_time_s=1000.0) as early:
        assert comes_true(lambda: late.flag == TIME_LIMIT)
        assert early.flag == 0


class Saves:
    """Keeps who called for a last save, and from which thread."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    def __call__(self, reason: str) -> None:
        self.made.append((reason, threading.current_thread().name))


def test_the_last_save_is_made_once_after_half_the_grace_time(clock: Clock) -> None:
    saves = Saves()
    with watch(grace_s=2000.0, save_last=saves) as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        assert comes_true(lambda: stops.flag == signal.SIGTERM)
        clock.move(500.0)
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
        assert saves.made == []
        clock.move(500.0)
        assert comes_true(lambda: bool(saves.made))
        clock.move(2000.0)
        time.sleep(0.2)
    assert saves.made == [("SIGTERM", "distrain-stops")]


def test_the_last_save_waits_no_longer_than_half_the_grace_time() -> None:
    saves, asked = Saves(), time.monotonic()
    with watch(grace_s=0.8, save_last=saves):
        os.kill(os.getpid(), signal.SIGTERM)
        assert comes_true(lambda: bool(saves.made))
        assert 0.4 <= time.monotonic() - asked < 0.4 + BUSY_S


def test_the_last_save_is_made_for_the_time_limit_too() -> None:
    saves = Saves()
    with watch(grace_s=0.2, max_time_s=0.1, save_last=saves):
        assert comes_true(lambda: bool(saves.made))
        time.sleep(0.3)
    assert [made[0] for made in saves.made] == ["the time limit"]


def test_no_last_save_is_made_where_somebody_saves_or_nobody_has_asked(clock: Clock) -> None:
    saves = Saves()
    with watch(grace_s=2000.0, save_last=saves) as handled:
        os.kill(os.getpid(), signal.SIGTERM)
        assert comes_true(lambda: handled.flag == signal.SIGTERM)
        handled.handled()
        clock.move(1500.0)
        time.sleep(0.2)
    with watch(grace_s=2000.0, save_last=saves) as left:
        os.kill(os.getpid(), signal.SIGTERM)
        assert comes_true(lambda: left.flag == signal.SIGTERM)
    clock.now += 1500.0
    with watch(grace_s=0.2, save_last=saves):
        time.sleep(0.4)
    assert saves.made == []


def test_in_another_thread_the_time_limit_is_watched_and_no_signal() -> None:
    before = signals_as_they_are()
    found: list[object] = []

    def work() -> None:
        with watch(max_time_s=0.2) as stops:
            found.append(
                [signal.getsignal(number) for number in WATCHED] == list(before[: len(WATCHED)])
            )
            found.append(comes_true(lambda: stops.flag == TIME_LIMIT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True, True]
    assert signals_as_they_are() == before


def test_without_signals_nothing_is_installed_and_the_time_limit_is_watched_all_the_same() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    before = signals_as_they_are()
    with watch(signals=(), max_time_s=0.2) as stops:
        assert signals_as_they_are() == before
        assert comes_true(lambda: stops.flag == TIME_LIMIT)


def python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_program_that_is_stopped_ends_with_75_and_no_traceback() -> None:
    error = StoppedError("SIGTERM")
    assert isinstance(error, SystemExit)
    assert error.code == 75
    assert str(error) == (
        "stopped by SIGTERM, with everything saved: run the same command to go on"
    )
    ended = python(
        "from distrain.coordinator.stops import StoppedError\n"
        "try:\n    raise StoppedError('SIGTERM')\nfinally:\n    print('closed')"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (75, "closed\n", "")


class Listener:
    """Whoever has started this process; counts what it is told."""

    def __init__(self) -> None:
        self.asks = 0

    def asked(self) -> None:
        self.asks += 1

    def ends(self, error: BaseException) -> None:
        raise AssertionError(error)

    def stepped(self) -> None:
        raise AssertionError

    def pulse_folder(self) -> Path | None:
        return None


def test_a_worker_that_is_asked_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distrain.coordinator.stops._launch", [])
    listener = Listener()
    answer_to(listener)
    with watch() as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        assert comes_true(lambda: stops.flag == signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), RELAY)
        assert comes_true(lambda: listener.asks == 1)
    assert listener.asks == 1


def test_a_relayed_ask_raises_no_flag_and_has_the_last_step_saved() -> None:
    saved: list[str] = []
    with watch(grace_s=0.2, save_last=saved.append) as stops:
        os.kill(os.getpid(), RELAY)
        assert comes_true(lambda: saved == ["a signal to another worker"])
        assert stops.flag == 0


def test_who_is_about_to_end_by_an_error_is_not_ended_before_it_is_noted() -> None:
    """As torchrun does to all workers when one has failed: SIGTERM would end this process here."""
    before = signals_as_they_are()
    with handlers_as_before():
        with suppress(ValueError), watch():
            raise ValueError("planted")
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals_as_they_are() != before
    assert signals_as_they_are() == before


def test_a_run_that_ends_well_or_stops_gives_signals_back_at_once() -> None:
    before = signals_as_they_are()
    with suppress(StoppedError), watch():
        raise StoppedError("SIGTERM")
    assert signals_as_they_are() == before
