"""A thread that exchanges parts of the gradient while the backward pass goes on."""

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

import torch

Task = Callable[[], None]


class Courier:
    """Does tasks in their order, in a thread, and on a GPU in a stream, of its own.

    The thread is a daemon: a process that ends by an error does not wait for peers who wait for it.
    """

    def __init__(self, device: torch.device) -> None:
        """The thread starts with the first task."""
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._outcomes: SimpleQueue[BaseException | None] = SimpleQueue()
        self._waiting = 0
        self._started = False

    def submit(self, task: Task) -> None:
        """Has a task done that uses what has been computed up to now."""
        if not self._started:
            self._started = True
            arguments = (self._tasks, self._outcomes)
            threading.Thread(target=_work, args=arguments, name="courier", daemon=True).start()
            weakref.finalize(self, self._tasks.put, None)
        self._tasks.put(task if self._stream is None else self._after_now(self._stream, task))
        self._waiting += 1

    def _after_now(self, stream: torch.cuda.Stream, task: Task) -> Task:
        computed = torch.cuda.Event()  # type: ignore[no-untyped-call]
        computed.record(torch.cuda.current_stream(self._device))

        def run() -> None:
            with torch.cuda.device(self._device), torch.cuda.stream(stream):
                stream.wait_event(computed)
                task()

        return run

    def wait(self) -> None:
        """Returns once all tasks are done.

        Raises:
            What the first task that failed has raised.
        """
        failed: BaseException | None = None
        waited = self._waiting
        while self._waiting:
            outcome = self._outcomes.get()
            self._waiting -= 1
            failed = failed or outcome
        if failed is not None:
            raise failed
        if waited and self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)


def _work(tasks: "SimpleQueue[Task | None]", outcomes: "SimpleQueue[BaseException | None]") -> None:
    while (task := tasks.get()) is not None:
        try:
            task()
        except BaseException as error:  # noqa: BLE001 - raised again by `wait`
            outcomes.put(error)
        else:
            outcomes.put(None)
        del task  # it holds buffers
