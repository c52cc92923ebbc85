"""Several micro-batches of one worker, each in a thread, of which exactly one runs at a time.

What wants a value from all micro-batches in the middle of a pass, as synchronised batch norm does,
can't do them one after the other. Here each has a thread through forward and backward, and they
meet: a thread that comes to a meeting hands the baton on, and has it back when all have met.

    place 0   ---- meet          ---- meet          ----
    place 1        ---- meet          ---- meet          ----
    main                ---- meet=         ---- meet=         ----      = the answer is made here

The order is that of the micro-batches, so a run does the same in the same order each time. The last
place is the calling thread itself: all exchanges with other workers are done there, Ctrl-C arrives
there, and a single micro-batch needs no thread at all.
"""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

Together = Callable[[Sequence[Any]], Any]
"""From what each place has brought to a meeting, by place, to the answer that all get."""


class _AbandonedError(BaseException):
    """Ends a thread because another has failed; no `except Exception` of a user's catches it."""


class Lockstep:
    """One round of work at several places, which meet.

    Attributes:
        running: The place that has the baton.
    """

    def __init__(self, num_places: int, together: Together, device: torch.device) -> None:
        """`together` is called in the calling thread, once for each meeting."""
        self._together, self._device = together, device
        self._last = num_places - 1
        # A queue of C waits without waking anyone else, and a signal interrupts it.
        self._batons = [queue.SimpleQueue[None]() for _ in range(num_places)]
        self._brought: list[Any] = [None] * num_places
        self._answer: Any = None
        self._failure: BaseException | None = None
        self.running = 0

    def run(self, work: Sequence[Callable[[], None]]) -> None:
        """Does the work of all places; each has to come to the same meetings.

        Whatever one raises ends all others, and is raised here; no thread is left behind.
        """
        surroundings = _Surroundings(self._device)
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(self._in_thread, place, work[place], surroundings),
                name=f"micro-batch {place}",
            )
            for place in range(self._last)
        ]
        started: list[threading.Thread] = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            self._pass_to(0)
            self._take(self._last)
            with _by_itself():
                work[self._last]()
        except BaseException as error:  # noqa: BLE001 - raised below, once all have ended
            self._fail(error)
        finally:
            for thread in started:
                thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # else its traceback and this frame would keep each other, and tensors

    def meet(self, place: int, brought: Any) -> Any:
        """Waits until all places have met; the answer to what they have brought."""
        if self._failure is not None:
            raise _AbandonedError
        self._brought[place] = brought
        if place == self._last:
            self._answer = self._together(self._brought)
            if not place:
                return self._answer
        drawn = _random_state(self._device)
        self._pass_to((place + 1) % (self._last + 1))
        self._take(place)
        _set_random_state(drawn, self._device)
        return self._answer  # the last place makes the next one, and has its turn after all others

    def _in_thread(
        self, place: int, work: Callable[[], None], surroundings: "_Surroundings"
    ) -> None:
        try:
            self._take(place)
            with surroundings.again():
                work()
            if self._failure is None:
                self._pass_to(place + 1)
        except BaseException as error:  # noqa: BLE001 - it is raised in the calling thread
            self._fail(error)

    def _take(self, place: int) -> None:
        self._batons[place].get()
        if self._failure is not None:
            raise _AbandonedError
        self.running = place

    def _pass_to(self, place: int) -> None:
        self._batons[place].put(None)

    def _fail(self, error: BaseException) -> None:
        """Keeps the first failure, and wakes all so that they end."""
        if self._failure is None and not isinstance(error, _AbandonedError):
            self._failure = error
        for baton in self._batons:
            baton.put(None)


class _Surroundings:
    """What torch keeps by thread and a person may have set in the calling one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._num_threads = torch.get_num_threads()
        self._default_device = torch.get_default_device()
        self._autocast = [
            (kind, torch.get_autocast_dtype(kind))
            for kind in dict.fromkeys(("cpu", device.type))
            if torch.is_autocast_enabled(kind)
        ]

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same in this thread."""
        # Of OpenMP and MKL as well: a fresh thread would have as many as there are cores (rule 2).
        torch.set_num_threads(self._num_threads)
        with ExitStack() as stack:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            if self._default_device.type != "cpu":
                stack.enter_context(self._default_device)
            for kind, dtype in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype))
            stack.enter_context(_by_itself())
            yield


@contextmanager
def _by_itself() -> Iterator[None]:
    """Backward passes stay in this thread, and autocast makes copies of weights for each use.

    Its cache of them is one for all threads, and whichever leaves its autocast first empties it.
    Whether two uses of a weight share a copy decides how their gradients are rounded.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    state = torch.default_generator.get_state()
    return (state, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (state,)


def _set_random_state(state: tuple[torch.Tensor, ...], device: torch.device) -> None:
    torch.default_generator.set_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
