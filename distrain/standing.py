"""The model's state after the last finished step, for other threads while the next one goes on."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from distrain.errors import ProgramError
from distrain.learn.averaging import AveragedWeights
from distrain.parallel.running_statistics import RunningStatistics

_LOOK_AGAIN_S = 0.01
_IN_BETWEEN = -2
"""Steps done while weights and statistics move; for good, where that has failed."""


class NotAtRestError(ProgramError):
    """The weights are neither those before a step nor those after it."""


class StandingState:
    """Knows which step the weights stand after, and keeps them there while somebody reads.

    Attributes:
        steps_done: Steps that the weights have in them; below 0 while they move, and before it is
            known where the run goes on.
    """

    def __init__(
        self, model: torch.nn.Module, statistics: RunningStatistics, average: AveragedWeights
    ) -> None:
        """What moves with a step: weights, running statistics, an average."""
        self._model, self._statistics, self._average = model, statistics, average
        self._lock, self.steps_done = threading.Lock(), -1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody reads meanwhile."""
        with self._lock:
            yield

    @contextmanager
    def moving_to(self, steps_done: int) -> Iterator[None]:
        """The weights move meanwhile; if that fails, they are of no step any more."""
        with self._lock:
            self.steps_done = _IN_BETWEEN
            yield
            self.steps_done = steps_done

    @contextmanager
    def going_back_to(self, steps_done: int) -> Iterator[None]:
        """All of it is set to what it was after an earlier step meanwhile."""
        with self.moving_to(steps_done):
            yield
            # What the statistics were at the begin of the step in hand stands no more.
            self._statistics.begin()

    def pass_to(self, steps_done: int) -> None:
        """Steps are counted that move nothing."""
        with self._lock:
            self.steps_done = steps_done

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model holds the average meanwhile, where there is one; `at_rest` is not misled."""
        with self._lock:
            self._average.exchange()
        try:
            yield
        finally:
            with self._lock:
                self._average.exchange()

    @contextmanager
    def at_rest(
        self, steps_done: Callable[[], int], within_s: float
    ) -> Iterator[Mapping[str, torch.Tensor]]:
        """Keeps another thread's hands off the weights; the model's state after the last step.

        Args:
            steps_done: What the rest of the run's state stands at: it is waited for until it
                agrees with the weights, which move a moment earlier.
            within_s: So long is waited for an update to end, and for that.

        Raises:
            NotAtRestError: an update does not end, or has failed in the middle.
        """
        end = time.monotonic() + within_s
        while self._lock.acquire(timeout=max(0.0, end - time.monotonic())):
            try:
                if self.steps_done == steps_done():
                    standing = self._statistics.standing() | self._average.standing()
                    yield {
                        name: standing.get(id(tensor), tensor.detach())
                        for name, tensor in self._model.state_dict(keep_vars=True).items()
                    }
                    return
                if self.steps_done == _IN_BETWEEN or time.monotonic() > end:
                    break
            finally:
                self._lock.release()
            time.sleep(_LOOK_AGAIN_S)
        raise NotAtRestError("an update of the weights has failed or does not end")
