"""Which phase of a step a worker is in: its sign of life, and where its time goes.

The marks are set by the run's main thread, a few a micro-batch, each a clock reading and two words
in memory, which whoever watches reads without asking.
"""

import threading
import time
from enum import IntEnum


class Phase(IntEnum):
    """What a worker does; of each, for how long is counted."""

    OUTSIDE = 0
    """No run goes on."""
    STARTING = 1
    """From the begin of a run to its first step: the folder, the last checkpoint."""
    LOADING = 2
    """Waits for its samples."""
    FORWARD = 3
    BACKWARD = 4
    REDUCTION = 5
    """Exchanges something with the other workers, or waits for them."""
    UPDATE = 6
    EVALUATION = 7
    CHECKPOINT = 8
    LOGGING = 9
    """Rank 0 writes and shows what a step has brought."""
    ENDING = 10


COUNT, STEPS_DONE, STEPS_HERE, PHASE, EXCHANGES = range(5)
"""Where a pulse's words stand."""

NUM_WORDS = 5


def own_words() -> memoryview:
    """Words of a pulse that nobody else sees."""
    return memoryview(bytearray(8 * NUM_WORDS)).cast("q")


class PhaseClock:
    """Keeps a worker's phase.

    Attributes:
        phase: The one that it is in.
        words: A pulse, `NUM_WORDS` words of int64: changes of phase so far, steps done of the run
            and by this start, the phase, and exchanges entered since the last step.
    """

    def __init__(self) -> None:
        """Belongs to the calling thread, until another one begins a run."""
        self.phase = Phase.OUTSIDE
        self.words = own_words()
        self._count, self._exchanges = 0, 0
        self._spent_ns = [0] * len(Phase)
        self._since_ns = time.perf_counter_ns()
        self._thread = threading.get_ident()

    def begin(self, words: memoryview) -> None:
        """A run starts in this thread; its pulse is to be kept in these words."""
        self._thread, self.words = threading.get_ident(), words
        self._spent_ns = [0] * len(Phase)
        self.enter(Phase.STARTING)

    def end(self) -> None:
        """The run has ended; what is marked from now on is seen by nobody."""
        self.enter(Phase.OUTSIDE)
        self.words = own_words()

    def takes_up(self, steps_done: int) -> None:
        """The run goes on after so many steps."""
        self.words[STEPS_DONE] = steps_done

    def step_done(self, steps_done: int) -> None:
        """A step was done, and is to be told of; the run stands after so many."""
        self.enter(Phase.LOGGING)
        self._exchanges = self.words[EXCHANGES] = 0
        self.words[STEPS_DONE] = steps_done
        self.words[STEPS_HERE] += 1

    @property
    def steps_done(self) -> int:
        """After which the run stands."""
        return self.words[STEPS_DONE]

    def enter(self, phase: Phase) -> Phase:
        """From now on it is in that phase, or still is; the one before."""
        now_ns, before = time.perf_counter_ns(), self.phase
        self._spent_ns[before] += now_ns - self._since_ns
        self._since_ns, self.phase = now_ns, phase
        self._count += 1
        words = self.words
        words[PHASE] = phase
        words[COUNT] = self._count
        return before

    def begin_exchange(self) -> Phase | None:
        """An exchange begins; what is to be given back at its end.

        What other threads exchange is no phase of the run.
        """
        if threading.get_ident() != self._thread:
            return None
        self._exchanges += 1
        self.words[EXCHANGES] = self._exchanges
        return self.enter(Phase.REDUCTION)

    def end_exchange(self, before: Phase | None) -> None:
        """It is back where it was."""
        if before is not None:
            self.enter(before)

    def take_us(self, phase: Phase) -> int:
        """Microseconds spent in a phase since this was asked for it last."""
        self.enter(self.phase)
        spent_ns, self._spent_ns[phase] = self._spent_ns[phase], 0
        return spent_ns // 1000
