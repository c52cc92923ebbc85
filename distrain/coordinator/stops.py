"""Stops: what asks a run to end raises a flag at once, whatever the main thread is doing.

A signal handler of Python's has to wait until the main thread is back from the exchange or the
kernel that it is in (7 s were measured). The C part of it writes to a file at once, and a thread
reads that. The flag then travels with the next step's gradients, so that all workers stop after the
same step. If no step ends, the thread has the last finished one saved.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Protocol, Self

from distrain.errors import ExitCode, exit_code_of

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""The signals that ask a run to save and end; SIGHUP is that of a terminal that was closed."""

RELAY = int(signal.SIGRTMIN) + 5
"""Another worker was asked: it will say so with its next step, unless none ends in time."""

RESIZE = int(signal.SIGRTMIN) + 6
"""The launcher asks its workers to save and end: it starts another number of them at once."""

TIME_LIMIT = 1000
"""The flag for `max_time_s`; that of a signal is its number."""

BEGAN = "DISTRAIN_BEGAN"
"""Environment variable: when the launcher began, as `began_now` has it."""

OTHER_SIZE = "a change of the number of workers"
"""The reason of a stop after which the launcher goes on by itself."""

_END = b"\0"


class StoppedError(SystemExit):
    """A run was asked to end, and everything is saved: uncaught, it ends the program with 75."""

    def __init__(self, reason: str) -> None:
        """Names who asked."""
        super().__init__(int(ExitCode.STOPPED))
        self.reason = reason

    @property
    def goes_on(self) -> bool:
        """Whether the launcher starts the workers again at once, in another number."""
        return self.reason == OTHER_SIZE

    def __str__(self) -> str:
        """Says what happened, and what to do."""
        if self.goes_on:
            return "all is saved, to go on with another number of workers"
        return f"stopped by {self.reason}, with everything saved: run the same command to go on"


class InterruptedAgainError(KeyboardInterrupt):
    """Ctrl-C while a run saves: it ends at once."""

    def __str__(self) -> str:
        """Says what it costs."""
        return "interrupted again: what came after the last checkpoint is lost"


class StopAskedError(Exception):
    """Leaves an evaluation that a stop has cut off; it is done again when the run goes on."""

    def __init__(self, flags: Sequence[int], share_done: float = 0.0) -> None:
        """`flags` are those of all workers; `share_done` is how far an evaluation has come."""
        super().__init__()
        self.flags, self.share_done = tuple(flags), share_done


def began_now() -> str:
    """Seconds of this host's monotonic clock, and the host."""
    return f"{time.monotonic()!r} {socket.gethostname()}"


def reason_of(flags: Sequence[int]) -> str | None:
    """Who asks for a stop, from the flags of all workers; None where nobody does."""
    raised = [flag for flag in flags if flag]
    if not raised:
        return None
    first = min(raised)  # a signal before the time limit, the same on every worker
    return "the time limit" if first == TIME_LIMIT else signal_name(first)


def signal_name(number: int) -> str:
    """A signal's name for a person."""
    if number == RELAY:
        return "a signal to another worker"
    if number == RESIZE:
        return OTHER_SIZE
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def time_left(max_time_s: float | None, environment: Mapping[str, str], now: float) -> float | None:
    """Seconds until the time limit, counted from the launcher's start where there was one."""
    if max_time_s is None:
        return None
    # Another host's clock, handed on with the environment, says nothing here.
    seconds, _, host = environment.get(BEGAN, "").partition(" ")
    try:
        began = float(seconds) if host == socket.gethostname() else now
    except ValueError:
        began = now
    return max_time_s - max(0.0, now - began)


def heeded(numbers: Iterable[int]) -> list[int]:
    """These signals; without SIGHUP where it is ignored, as for what `nohup` has started."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in numbers if not (ignored and number == signal.SIGHUP)]


class StopWatch:
    """Watches for signals and the time limit while a run goes on; a context manager.

    Python allows signal handlers to the main thread alone: in another one the time limit is all
    that is watched.

    Attributes:
        flag: 0, or what asks this worker to stop: a signal's number or `TIME_LIMIT`.
    """

    def __init__(
        self,
        grace_s: float,
        max_time_s: float | None,
        save_last: Callable[[str], None],
        *,
        signals: Collection[signal.Signals] = WATCHED,
    ) -> None:
        """`save_last(reason)` is called in the watcher's thread if, in half of `grace_s` after the
        flag was raised, nobody has called `handled`.
        """
        self._signals = signals
        self.flag = 0
        self._grace_s, self._max_time_s, self._save_last = grace_s, max_time_s, save_last
        self._handled = False
        self._interrupts = self._interrupts_noted = 0
        self._hearing = threading.RLock()  # a signal may come while another is being answered
        self._saving = threading.Lock()
        self._stack, self._handlers = ExitStack(), ExitStack()
        self._ear, self._mouth = socket.socketpair()

    def handled(self) -> None:
        """The main thread has seen the flag, and saves.

        If the watcher's thread has begun to save, this waits: that ends the process.
        """
        with self._saving:
            self._handled = True

    def __enter__(self) -> Self:
        """Starts to watch."""
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        if self._signals and threading.current_thread() is threading.main_thread():
            woken = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
            self._stack.callback(signal.set_wakeup_fd, woken)
            handed_on = heeded({*self._signals, RELAY, RESIZE})
            for number in handed_on:
                before = signal.signal(number, self._noted)
                self._handlers.callback(signal.signal, number, before)
            # The launcher's workers begin with these blocked: what has come meanwhile comes now.
            mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, handed_on)
            self._stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        now = time.monotonic()
        left = time_left(self._max_time_s, os.environ, now)
        deadline = None if left is None else now + left
        thread = threading.Thread(
            target=self._watch, args=(deadline,), name="distrain-stops", daemon=True
        )
        thread.start()
        self._stack.callback(thread.join, 5.0)
        self._stack.callback(self._mouth.send, _END)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the signals back to whom they belonged before; where an error ends the run, later.

        Who has started it may ask a worker to end that is about to: torchrun does, where another
        has failed. What ends the run is to be noted first; `handlers_as_before` does the rest.
        """
        try:
            self.handled()
        finally:
            self._stack.close()
            if kind is None or issubclass(kind, SystemExit | KeyboardInterrupt):
                self._handlers.close()
            self._ear.close()
            self._mouth.close()

    def _noted(self, number: int, _frame: FrameType | None) -> None:
        """All is done by the thread; a second Ctrl-C ends the program as it always does."""
        if number != signal.SIGINT:
            return
        # Two that come while the main thread is away are a single call here, and the thread may not
        # have had its turn since.
        self._interrupts_noted += 1
        with self._hearing:
            unheard = b""
            with suppress(OSError):  # there is nothing, or the watch is over
                unheard = self._ear.recv(256, socket.MSG_PEEK)
            interrupts = self._interrupts + unheard.count(signal.SIGINT)
        if max(self._interrupts_noted, interrupts) > 1:
            raise InterruptedAgainError

    def _hear(self) -> bytes:
        with self._hearing:
            heard = self._ear.recv(256)
            self._interrupts += heard.count(signal.SIGINT)
            return heard

    def _asked_for(self, heard: bytes) -> int:
        """The signal that counts of some; one that ends the run before another number of workers.

        0 where none does, or the flag is up for one already.
        """
        found = next((number for number in heard if number in self._signals), 0)
        if not found and not self.flag and RESIZE in heard:
            return RESIZE
        return found if self.flag in (0, RESIZE) else 0

    def _watch(self, deadline: float | None) -> None:
        give_up: float | None = None
        while True:
            until = min((at for at in (deadline, give_up) if at is not None), default=None)
            wait_s = None if until is None else max(0.0, until - time.monotonic())
            if select.select([self._ear], [], [], wait_s)[0]:
                heard = self._hear()
                if _END in heard or not heard:
                    return
                asked = self._asked_for(heard)
                if RELAY in heard and not self.flag and give_up is None:
                    give_up = time.monotonic() + self._grace_s / 2
            elif until == deadline:
                asked, deadline = TIME_LIMIT, None
            else:
                give_up = None
                with self._saving:
                    if not self._handled:
                        self._save_last(reason_of([self.flag]) or signal_name(RELAY))
                continue
            if asked and asked != self.flag:
                self.flag, deadline = asked, None
                give_up = time.monotonic() + self._grace_s / 2
                # The other signal comes from the launcher, to all its workers.
                for launch in () if self._handled or asked == RESIZE else _launch:
                    launch.asked()


@contextmanager
def handlers_as_before() -> Iterator[None]:
    """After the block signals are answered as before it, whatever a `StopWatch` in it has left."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (*WATCHED, RELAY, RESIZE) if is_main else ()
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one of C's can't be set from here
                signal.signal(number, handler)


class Launch(Protocol):
    """Whoever has started this process, and has to be told of things while its run goes on."""

    def asked(self) -> None:
        """This worker is asked to stop; the step in hand may never end, so the others must know."""
        ...

    def ends(self, error: BaseException) -> None:
        """The process ends at once, by this error."""
        ...

    def stepped(self) -> None:
        """This start has done its first step."""
        ...

    def pulse_folder(self) -> Path | None:
        """Where it looks for this worker's pulse; None where it doesn't."""
        ...


_launch: list[Launch] = []


def answer_to(launch: Launch) -> None:
    """From now on this is told; without one, nobody is."""
    _launch[:] = [launch]


def tell_of_first_step() -> None:
    """Has the launcher know that this start goes on from where the last one was lost."""
    for launch in _launch:
        launch.stepped()


def is_launched() -> bool:
    """Whether anybody is told."""
    return bool(_launch)


def pulse_folder() -> Path | None:
    """Where this process's launcher looks for its pulse; None where nobody does."""
    return next(filter(None, (launch.pulse_folder() for launch in _launch)), None)


def end_process(error: BaseException) -> NoReturn:
    """Ends the process while its main thread is busy, with the error's exit code."""
    code = ExitCode.STOPPED if isinstance(error, StoppedError) else exit_code_of(error)
    try:
        for launch in _launch:
            launch.ends(error)
    finally:
        os._exit(code)
