"""Has a run tell of workers that are slow, and of where its time goes."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from distrain.coordinator.observers import Ending, EpochRecord
from distrain.coordinator.phases import Phase
from distrain.coordinator.slow_ranks import PhaseTimes, SlowRank
from distrain.parallel.communicator import gather_bytes
from distrain.parallel.split import BatchPlan, owned_range
from distrain.parallel.summing import Flag
from distrain.parallel.world import World
from distrain.step import StepResult

_WORK = {
    Phase.LOADING: "waiting for its samples",
    Phase.FORWARD: "in the forward pass",
    Phase.BACKWARD: "in the backward pass",
    Phase.UPDATE: "in the update",
    Phase.EVALUATION: "in evaluations",
}


def hosts_of(world: World) -> list[str]:
    """The workers' hosts by rank; an exchange, which all workers enter."""
    mine = os.uname().nodename.encode()
    return [host.decode() for host in gather_bytes(mine, world.communicator, world.device)]


class SlowRankNotes:
    """An observer: events `phases` in every window, and `slow_rank` where that has changed."""

    def __init__(self, note: Callable[..., None], hosts: Sequence[str]) -> None:
        """`note(event, text, **fields)` tells all observers; `hosts` are those of the workers."""
        self._note, self._hosts = note, hosts
        self._times = PhaseTimes()
        self._told: set[tuple[int, Phase]] = set()

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """Nothing to tell yet."""

    def step(self, result: StepResult) -> None:
        """Listens; tells at the end of a window."""
        batch, size = result.batch, len(self._hosts)
        shares = [len(owned_range(batch.num_micro_batches, rank, size)) for rank in range(size)]
        window = self._times.add(batch.step, result.flags[Flag.SPENT], shares)
        if window is None:
            return
        step = batch.step + 1
        means = {p.name.lower(): round(sum(s) / size, 6) for p, s in window.seconds.items()}
        self._note("phases", "", step=step, steps=window.steps, seconds=means)
        now = {(slow.rank, slow.phase): slow for slow in window.slow}
        for key in sorted(now.keys() - self._told):
            self._tell(step, now[key])
        for rank, phase in sorted(self._told - now.keys()):
            text = f"rank {rank} is as quick as the others again, {_WORK[phase]}"
            self._note("slow_rank_over", text, step=step, rank=rank, phase=phase.name.lower())
        self._told = set(now)

    def _tell(self, step: int, slow: SlowRank) -> None:
        host = self._hosts[slow.rank]
        ratio = f"{slow.seconds / slow.usual_s:.1f} times" if slow.usual_s else "more than"
        self._note(
            "slow_rank",
            f"rank {slow.rank} on {host} is slow, {_WORK[slow.phase]}: {1e3 * slow.seconds:.0f} ms "
            f"a step, {ratio} the {1e3 * slow.usual_s:.0f} ms of the others",
            step=step,
            rank=slow.rank,
            host=host,
            phase=slow.phase.name.lower(),
            seconds=round(slow.seconds, 6),
            usual_s=round(slow.usual_s, 6),
        )

    def epoch(self, record: EpochRecord) -> None:
        """Nothing more to tell."""

    def note(self, event: str, text: str, **fields: Any) -> None:
        """That is for others."""

    def end(self, ending: Ending) -> None:
        """Nothing is left open."""
