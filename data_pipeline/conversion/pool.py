"""Tasks done by several processes, their results in the order of the tasks."""

import fcntl
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from data_pipeline.errors import LostProcessError

Shared = TypeVar("Shared")
Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 4
"""So many tasks a process are handed out before the first of them is done."""

_shared: Any = None
_held: int | None = None


def map_in_order(
    function: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Iterable[Task],
    *,
    workers: int,
    lock: Path,
) -> Generator[Result, None, None]:
    """`function(shared, task)` for each task, in their order; with one worker in this process.

    The other processes hold a shared lock on the file `lock`, and end when this one does; when it
    is left early, they are ended at once.

    Raises:
        LostProcessError: a process has ended before its time.
        Exception: the error of the first task, in their order, that has failed.
    """
    if workers <= 1:
        for task in tasks:
            yield function(shared, task)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "data_pipeline.conversion.preloaded"])
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start, initargs=(shared, lock)
    )
    done = False
    try:
        yield from _in_order(pool, function, iter(tasks), workers * _AHEAD)
        done = True
    except BrokenProcessPool as error:
        raise LostProcessError(
            "a worker process was lost (killed, or out of memory): what is finished is kept, so "
            "run the same again, with fewer workers if memory was short. In a program of yours, "
            'the call has to stand in a file, under `if __name__ == "__main__":`'
        ) from error
    finally:
        if not done:
            # The program's other children are no affair of this pool.
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor,
    function: Callable[[Shared, Task], Result],
    tasks: Iterator[Task],
    ahead: int,
) -> Iterator[Result]:
    handed_out: deque[Future[Result]] = deque(
        pool.submit(_do, function, task) for task in islice(tasks, ahead)
    )
    while handed_out:
        result = handed_out.popleft().result()
        handed_out.extend(pool.submit(_do, function, task) for task in islice(tasks, 1))
        yield result


def _do(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_shared, task)


def _start(shared: Any, lock: Path) -> None:
    """Sets a process up: Ctrl-C is its parent's affair, and it ends with its parent."""
    global _shared, _held  # noqa: PLW0603 - what each process is told once
    _shared = shared
    _held = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(_held, fcntl.LOCK_SH)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if not parent.is_alive():  # and a successor may have looked at the lock already
        os._exit(1)

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
