"""Who is missing where an exchange has failed: the workers that are left say so to each other.

Torch's own error names an address at best, and those who wait for a worker that waits for the lost
one learn nothing. So each worker that finds an exchange failed closes its connections, whereupon
its peers find the same, leaves a word in the store through which the group was joined, and listens
a moment for the words of the others. Who leaves none is the one that is missed.
"""

import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Protocol

from torch.distributed import distributed_c10d

from distrain.errors import LostPeerError, is_lost_peer, named_ranks
from distrain.parallel import world as worlds
from distrain.parallel.world import World

_LISTEN_EVERY_S = 0.05

_TIMED_OUT = re.compile(r"[Tt]imed? ?out")
_TIMEOUT, _CLOSED = "timeout", "closed"

LISTEN_S = {_CLOSED: 2.0, _TIMEOUT: 10.0}
"""How long the words of others are waited for, by this worker's own.

A lost connection is noticed within a moment by all. Who has waited too long may have come to the
exchange seconds before another, which is late, and not missing: rank 0 writes to a slow disk.
"""

NOTED_S = 1.0
"""After a time limit the others listen so much longer than rank 0, which notes how the run ends:
once one of them has gone, its launcher gives those that are left little time.
"""


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None:
        """Leaves a value for all workers."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        ...

    def get(self, key: str) -> bytes:
        """A value that is there."""
        ...


def explained(error: BaseException, world: World, steps_done: int) -> BaseException:
    """The error with who is missing, where an exchange of a run has failed; else as it is.

    The group can't be used any more then, and is left.
    """
    if world.size == 1 or isinstance(error, LostPeerError) or not is_lost_peer(error):
        return error
    detail = str(error).splitlines()[0]
    words: Mapping[int, str] = {}
    if worlds.has_joined():
        try:
            store: Store = distributed_c10d._get_default_store()
            # What lies in the frames that have failed keeps the connections open.
            traceback.clear_frames(error.__traceback__)
            words = call_roll(store, world.rank, world.size, word_of(detail), _close)
        except (RuntimeError, OSError) as second:  # who kept the store may be the one that is lost
            detail += f"; and the store by which the workers found each other: {second}"
    return LostPeerError(loss_text(words, world.rank, world.size, steps_done, detail))


def _close() -> None:
    worlds.leave()
    gc.collect()


def word_of(detail: str) -> str:
    """What a worker says of its own failure."""
    return _TIMEOUT if _TIMED_OUT.search(detail) else _CLOSED


def call_roll(
    store: Store, rank: int, world_size: int, word: str, close: Callable[[], None]
) -> dict[int, str]:
    """Leaves this worker's word; the words that were left by rank, after some time or once all are.

    `close()` makes the others notice as well.
    """
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keys = {other: f"distrain/roll/{start}/{other}" for other in range(world_size)}
    said_at, began = time.time(), time.monotonic()
    store.set(keys[rank], f"{word} {said_at}")
    close()
    words, times = dict[int, str](), {rank: said_at}
    while len(words) < world_size:
        for other, key in keys.items():
            if other not in words and store.check([key]):
                words[other], at = store.get(key).decode().split()
                times[other] = float(at)
        late_s = said_at - min(times.values())
        if time.monotonic() - began > listening_s(word, rank, late_s):
            break
        time.sleep(_LISTEN_EVERY_S)
    return words


def listening_s(word: str, rank: int, late_s: float) -> float:
    """How long a worker listens that has left its word so long after the first, by the wall clock.

    All end at about the same moment; clocks of machines that differ much cost some of that.
    """
    least_s, most_s = LISTEN_S[_CLOSED], LISTEN_S[word]
    longer_s = NOTED_S if rank and word == _TIMEOUT else 0.0
    return max(least_s, most_s - late_s) + longer_s


def loss_text(
    words: Mapping[int, str], rank: int, world_size: int, steps_done: int, detail: str
) -> str:
    """What is known of a failed exchange, for a person.

    Args:
        words: By rank, of the workers that have said something.
        rank: This worker.
        world_size: All of them.
        steps_done: Steps that were done before.
        detail: The error's own text.
    """
    where = f"rank {rank}, in step {steps_done + 1} or after step {steps_done}"
    missing = [other for other in range(world_size) if other not in words]
    if not words:
        return f"the connection to another worker was lost ({where}); did it end early? ({detail})"
    if not missing:
        return (
            f"an exchange failed ({where}), though every worker is there: one was too slow for "
            f"parallel.timeout_s, or does another exchange than the others ({detail})"
        )
    one = len(missing) == 1
    stands = _TIMEOUT in words.values()
    how = "stand" + "s" * one + " still" if stands else ("has" if one else "have") + " ended early"
    limit = " for longer than parallel.timeout_s" if stands else ""
    return (
        f"{named_ranks(missing)} {how}{limit}: the others waited in an exchange that "
        f"{'it' if one else 'they'} did not come to ({where}; {detail})"
    )
