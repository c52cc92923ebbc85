"""A worker's pulse, as others see it, and who is at fault where pulses stand still.

Each worker keeps four words in a file that is mapped to memory; its launcher reads them. A worker
that waits in an exchange stands still as well: at fault is who does so elsewhere.
"""

import json
import mmap
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import StorageError
from distrain.coordinator.phases import (
    COUNT,
    EXCHANGES,
    NUM_WORDS,
    PHASE,
    STEPS_DONE,
    STEPS_HERE,
    Phase,
)

_PAGE = 4096
_FACTS_AT = 64
_HANG = "hang.json"

MOST_UNSEEN_S = 2.0
"""Between two looks no more than this counts: who looks may have been frozen with all others."""

FIRST_STEP_S = 60.0
"""Until a start has done a step, no worker hangs before so long."""

_IN_STEP = {
    Phase.LOADING: "waiting for the samples",
    Phase.FORWARD: "in the forward pass",
    Phase.BACKWARD: "in the backward pass",
    Phase.REDUCTION: "in an exchange",
    Phase.UPDATE: "in the update",
}
_AFTER_STEP = {
    Phase.EVALUATION: "in the evaluation",
    Phase.CHECKPOINT: "at the checkpoint",
    Phase.LOGGING: "writing its log",
    Phase.ENDING: "ending the run",
}


@dataclass(frozen=True)
class Worker:
    """Whose pulse it is.

    Attributes:
        folder: The run's, absolute; None where it leaves no files.
        limit_s: A pulse that stands still for longer is one of a worker that hangs.
    """

    rank: int
    world_size: int
    pid: int
    host: str
    folder: str | None
    limit_s: float


@dataclass(frozen=True)
class Pulse:
    """A worker's sign of life at one moment.

    Attributes:
        count: Changes with every sign.
        steps_done: Of the run; the step in hand is the next one.
        steps_here: Done by this start.
        exchanges: Entered since the last step.
    """

    worker: Worker
    count: int
    steps_done: int
    steps_here: int
    phase: Phase
    exchanges: int

    @property
    def waits(self) -> bool:
        """Whether it waits for others, as far as it can tell."""
        return self.phase == Phase.REDUCTION and self.worker.world_size > 1

    @property
    def limit_s(self) -> float:
        """After so long without a sign it hangs; the first step has imports and compilers in it."""
        limit_s = self.worker.limit_s
        return limit_s if self.steps_here else max(limit_s, FIRST_STEP_S)


def pulse_of(worker: Worker, words: memoryview) -> Pulse:
    """What the words say now."""
    phase = Phase(words[PHASE])
    steps = words[STEPS_DONE], words[STEPS_HERE]
    return Pulse(worker, words[COUNT], *steps, phase, words[EXCHANGES])


def open_pulse(folder: Path, worker: Worker) -> memoryview:
    """A file with the words of a worker's pulse, for those who look into `folder`.

    Raises:
        StorageError: it can't be written.
    """
    path, facts = folder / f"pulse-{worker.rank}", json.dumps(asdict(worker)).encode()
    aside = folder / f".pulse-{worker.rank}.partial"
    try:
        # All of it is written: a page that a full disk has no room for would end the process.
        aside.write_bytes((bytes(_FACTS_AT) + facts).ljust(_PAGE, b"\0"))
        with aside.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), _PAGE)
        aside.rename(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
    return memoryview(mapped)[: 8 * NUM_WORDS].cast("q")


def read_pulses(folder: Path) -> list[Pulse]:
    """The pulses of the workers that look after them there, by rank."""
    found = []
    for path in folder.glob("pulse-*"):
        content = path.read_bytes()
        worker = Worker(**json.loads(content[_FACTS_AT:].rstrip(b"\0")))
        found.append(pulse_of(worker, memoryview(content)[: 8 * NUM_WORDS].cast("q")))
    return sorted(found, key=lambda pulse: pulse.worker.rank)


class Standstill:
    """For how long each pulse has been seen to stand still."""

    def __init__(self) -> None:
        """Nothing has been seen yet."""
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked_at: float | None = None

    def look(self, pulses: Sequence[Pulse], now_s: float) -> dict[int, float]:
        """Seconds by rank."""
        passed_s = 0.0 if self._looked_at is None else now_s - self._looked_at
        self._looked_at, before = now_s, self._seen
        self._seen = {}
        for pulse in pulses:
            count, stood_s = before.get(pulse.worker.rank, (-1, 0.0))
            still = count == pulse.count
            stood_s = stood_s + min(passed_s, MOST_UNSEEN_S) if still else 0.0
            self._seen[pulse.worker.rank] = pulse.count, stood_s
        return {rank: stood_s for rank, (_, stood_s) in self._seen.items()}


def at_fault(
    pulses: Sequence[Pulse], stood_s: Mapping[int, float], halted: Collection[int]
) -> list[Pulse]:
    """The workers that hang, of those that somebody looks after; none where all may go well.

    Args:
        pulses: Of these workers.
        stood_s: By rank, how long each has stood still.
        halted: Ranks whose process has been stopped by a signal, wherever it was.
    """
    still = [
        pulse
        for pulse in pulses
        if pulse.phase != Phase.OUTSIDE and stood_s[pulse.worker.rank] > pulse.limit_s
    ]
    own = [pulse for pulse in still if not pulse.waits or pulse.worker.rank in halted]
    if own or not still:
        return own
    if len(still) < still[0].worker.world_size:
        return []  # they wait for one that moves, or that is looked after elsewhere
    first = min((pulse.steps_done, pulse.exchanges) for pulse in still)
    return [pulse for pulse in still if (pulse.steps_done, pulse.exchanges) == first]


def place_of(pulse: Pulse) -> str:
    """Where a worker stands, for a person; steps are counted from 1."""
    if pulse.phase in _IN_STEP:
        return f"{_IN_STEP[pulse.phase]} of step {pulse.steps_done + 1}"
    if pulse.phase in _AFTER_STEP:
        return f"{_AFTER_STEP[pulse.phase]} after step {pulse.steps_done}"
    return "starting" if pulse.phase == Phase.STARTING else "outside of a run"


def hang_text(
    hung: Sequence[Pulse], stood_s: Mapping[int, float], halted: Collection[int] = ()
) -> str:
    """Who hangs, where, and for how long, for a person.

    Args:
        hung: Those at fault.
        stood_s: By rank.
        halted: As above.
    """
    said = [
        f"rank {pulse.worker.rank} on {pulse.worker.host} hangs, {place_of(pulse)}: no sign of "
        f"life for {stood_s[pulse.worker.rank]:.3g} s"
        + " (a signal has stopped its process)"
        * (pulse.worker.rank in halted)
        for pulse in hung
    ]
    if len(hung) > 1 and all(pulse.waits for pulse in hung):
        said.append("each waits for others")
    return "; ".join(said)


def is_halted(pid: int) -> bool:
    """Whether a process stands where a signal (SIGSTOP, SIGTSTP) has stopped it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:  # it has ended meanwhile
        return False
    return stat.rpartition(")")[2].split()[0] == "T"


def tell_hang(folder: Path, text: str, hung: Sequence[Pulse]) -> None:
    """Leaves word of a hang for the start that comes after it."""
    first = hung[0]
    said = {
        "text": text,
        "rank": first.worker.rank,
        "host": first.worker.host,
        "step": first.steps_done + 1,
        "phase": first.phase.name.lower(),
    }
    (folder / _HANG).write_text(json.dumps(said))


def told_hangs(folder: Path | None) -> list[dict[str, Any]]:
    """What was left there, which is gone then."""
    path = None if folder is None else folder / _HANG
    if path is None or not path.exists():
        return []
    said: dict[str, Any] = json.loads(path.read_bytes())
    path.unlink()
    return [said]


def this_process(rank: int, world_size: int, folder: str | Path | None, limit_s: float) -> Worker:
    """The worker that this process is."""
    path = None if folder is None else str(Path(folder).absolute())
    return Worker(rank, world_size, os.getpid(), os.uname().nodename, path, limit_s)
