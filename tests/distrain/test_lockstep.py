"""Work at several places, of which one runs at a time: its order, its surroundings, its end."""

import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from distrain.parallel.lockstep import Lockstep

CPU = torch.device("cpu")
NOTE: contextvars.ContextVar[str] = contextvars.ContextVar("note")

Step = Callable[[Lockstep, int], None]


def run(num_places: int, work: Step, together: Callable[[Sequence[Any]], Any] = list) -> Lockstep:
    """The same work at all places; no thread may be left behind, whatever happens."""
    before = set(threading.enumerate())
    lockstep = Lockstep(num_places, together, CPU)

    def at(place: int) -> Callable[[], None]:
        return lambda: work(lockstep, place)

    try:
        lockstep.run([at(place) for place in range(num_places)])
    finally:
        assert set(threading.enumerate()) <= before  # others' may end meanwhile
    return lockstep


@pytest.mark.parametrize("num_places", [1, 2, 5])
def test_one_place_runs_at_a_time_and_in_order(num_places: int) -> None:
    went: list[tuple[int, int]] = []

    def work(lockstep: Lockstep, place: int) -> None:
        for number in range(3):
            assert lockstep.running == place
            went.append((number, place))
            time.sleep(0.001)  # another that runs as well would now come between
            assert went[-1] == (number, place)
            lockstep.meet(place, None)

    run(num_places, work)
    assert went == [(number, place) for number in range(3) for place in range(num_places)]


@pytest.mark.parametrize("num_places", [1, 2, 5])
def test_all_get_the_answer_to_what_all_have_brought(num_places: int) -> None:
    got: list[tuple[int, list[int]]] = []
    makers: set[int] = set()

    def together(brought: Sequence[int]) -> list[int]:
        makers.add(threading.get_ident())
        return [10 * value for value in brought]

    def work(lockstep: Lockstep, place: int) -> None:
        for number in range(4):
            got.append((number, lockstep.meet(place, number + place)))

    run(num_places, work, together)
    assert len(got) == 4 * num_places
    for number, answer in got:
        assert answer == [10 * (number + place) for place in range(num_places)]
    assert makers == {threading.get_ident()}, "answers are made in the calling thread"


def test_random_numbers_are_those_that_each_place_would_draw_alone() -> None:
    def draws(place: int, between: Callable[[], None]) -> list[float]:
        torch.manual_seed(place)
        found = []
        for _ in range(3):
            found.append(torch.rand(()).item())
            between()
        return found

    alone = [draws(place, lambda: None) for place in range(4)]
    found: dict[int, list[float]] = {}

    def work(lockstep: Lockstep, place: int) -> None:
        found[place] = draws(place, lambda: lockstep.meet(place, None))

    run(4, work)
    assert [found[place] for place in range(4)] == alone


@pytest.mark.parametrize("num_places", [1, 3])
def test_threads_have_the_surroundings_of_the_calling_one(num_places: int) -> None:
    found = []

    def work(lockstep: Lockstep, place: int) -> None:
        product = torch.ones(2, 2, device="cpu") @ torch.ones(2, 2, device="cpu")
        kinds = (product.dtype, torch.ones(1).device.type, torch.get_num_threads())
        found.append((*kinds, NOTE.get(), torch.is_grad_enabled()))
        lockstep.meet(place, None)

    NOTE.set("kept")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            run(num_places, work)
    finally:
        torch.set_num_threads(threads)
    assert found == [(torch.bfloat16, "meta", 2, "kept", True)] * num_places


class BoomError(Exception):
    pass


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("when", [0, 1, 2])
def test_what_one_place_raises_ends_all_and_is_raised(failing: int, when: int) -> None:
    closed: list[int] = []

    def work(lockstep: Lockstep, place: int) -> None:
        try:
            for number in range(3):
                if (place, number) == (failing, when):
                    raise BoomError(f"at {place}")
                lockstep.meet(place, None)
        except BoomError:
            raise
        except Exception:  # noqa: BLE001 - what a person writes; how the others end is not for it
            closed.append(-1)
        finally:
            closed.append(place)

    with pytest.raises(BoomError, match=f"at {failing}") as caught:
        run(3, work)
    began = list(range(3)) if when else list(range(failing + 1))
    assert sorted(closed) == began
    assert any(entry.name == "work" for entry in caught.traceback), "it shows where"


def test_what_is_raised_within_a_backward_pass_comes_out_as_it_is() -> None:
    def work(lockstep: Lockstep, place: int) -> None:
        x = torch.ones(2, requires_grad=True)

        def meet(_: torch.Tensor) -> None:
            lockstep.meet(place, None)
            if place == 1:
                raise BoomError("in a hook")

        y = x * 2
        y.register_hook(meet)  # type: ignore[no-untyped-call]
        y.sum().backward()  # type: ignore[no-untyped-call]

    with pytest.raises(BoomError, match="in a hook"):
        run(3, work)


@pytest.mark.parametrize("num_places", [1, 3])
def test_a_meeting_that_fails_ends_all(num_places: int) -> None:
    def together(brought: Sequence[int]) -> None:
        if brought[0] == 1:
            raise BoomError("no answer")

    def work(lockstep: Lockstep, place: int) -> None:
        for number in range(3):
            lockstep.meet(place, number)

    with pytest.raises(BoomError, match="no answer"):
        run(num_places, work, together)


@pytest.mark.parametrize("running", [0, 1, 2])
def test_ctrl_c_ends_it_whoever_is_running(running: int) -> None:
    passed: list[int] = []

    def work(lockstep: Lockstep, place: int) -> None:
        if place == running:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        for _ in range(3):
            lockstep.meet(place, None)
        passed.append(place)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(3, work)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not passed
