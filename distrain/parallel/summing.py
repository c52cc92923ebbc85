"""A step's sum: the micro-batches' gradients, ledger and statistics, from leaves to one total."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import torch

from distrain.coordinator.phases import Phase
from distrain.errors import ConfigError
from distrain.numerics import NORM_BLOCK
from distrain.parallel.collector import GradientCollector
from distrain.parallel.gradients import FlatGradients, gradient_parts
from distrain.parallel.optimizer_state import refuse_beyond_elements
from distrain.parallel.ownership import Ownership, Replicated
from distrain.parallel.payload import Payload, PayloadLayout
from distrain.parallel.reduction import TreeReduction
from distrain.parallel.sharding import Sharded
from distrain.parallel.transport import SharedTransport
from distrain.parallel.world import World

WHOLE_WORDS = 2**17
"""A gradient of at most so many words travels whole; above, shares of it are quicker (measured)."""

WHOLE_WORDS_OF_TWO = 2**21
"""The same for two workers, for whom a whole partial sum is no more bytes than shares."""

PART_WORDS = 2**22
"""Words of a gradient that travel at once."""


class Flag(IntEnum):
    """What a worker tells all others of itself with every step; none of it reaches a weight."""

    STOP = 0
    """What asks it to stop: a signal's number, or the time limit."""
    LATE = 1
    """A gradient moved after its part had gone."""
    SAVE = 2
    """Rank 0's clock says that a checkpoint is due."""
    STATE = 3
    """A digest of its state before the step, where a check is due."""
    UNSAVED = 4
    """The step whose checkpoint rank 0 could not write, until a later one is written."""
    SPENT = 5
    """Microseconds that it has spent in one phase, another one at each step in turn."""
    SNAPSHOT = 6
    """What it can and wants to do about a copy of its part of a sharded run's state."""


@dataclass(frozen=True, kw_only=True)
class SumOptions:
    """How gradients travel.

    Attributes:
        shard_optimizer: Each worker updates a share of the weights.
        gradient_dtype: "float32", or "bfloat16": half the bytes, rounded at every node (rule 7).
        whole_words, part_words: Where a gradient is cut; by default `WHOLE_WORDS`, `PART_WORDS`.
    """

    shard_optimizer: bool = False
    gradient_dtype: str = "float32"
    whole_words: int | None = None
    part_words: int = PART_WORDS

    def __post_init__(self) -> None:
        """Checks names and sizes."""
        if self.gradient_dtype not in ("float32", "bfloat16"):
            raise ConfigError(
                f'gradient_dtype is {self.gradient_dtype!r}; give "float32" or "bfloat16"'
            )
        if self.part_words % NORM_BLOCK:
            raise ConfigError(f"part_words is {self.part_words}; give a multiple of {NORM_BLOCK}")

    def most_whole(self, world_size: int) -> int:
        """Words of the longest gradient that travels whole."""
        if self.whole_words is not None:
            return self.whole_words
        return WHOLE_WORDS_OF_TWO if world_size == 2 else WHOLE_WORDS


def travelling_parts(num_words: int, world_size: int, options: SumOptions) -> tuple[range, ...]:
    """The parts in which so long a gradient travels; none where it travels whole."""
    return gradient_parts(num_words, options.most_whole(world_size), options.part_words)


@dataclass(frozen=True)
class Summed:
    """A step's total, the same on every worker.

    Attributes:
        total: Ledger and statistics.
        gradient: `(num_floats,)`, float32: of a sharded optimizer, this worker's shares alone.
        flags: By kind, those of all workers.
        is_wrong: A gradient came too late: all has to be done again, without overlap.
    """

    total: Payload
    gradient: torch.Tensor
    flags: Mapping[Flag, tuple[int, ...]]
    is_wrong: bool


class StepSum:
    """Takes each micro-batch's gradient, and gives the sum over all.

    Attributes:
        gradients: Where each parameter's gradient lies.
        layout: Of one partial sum.
        options: How it travels.
        is_alone: The micro-batches are looked at one by one, to find a fault.
    """

    def __init__(
        self,
        gradients: FlatGradients,
        options: SumOptions,
        world: World,
        *,
        num_float64: int,
        num_int64: int,
        num_float32: int,
    ) -> None:
        """The numbers are those of the other words that travel."""
        self.gradients, self._world = gradients, world
        dtype = torch.bfloat16 if options.gradient_dtype == "bfloat16" else torch.float32
        num_words = gradients.num_floats
        self.layout = PayloadLayout(
            num_float64, num_int64, num_float32, num_words, dtype, world.size * len(Flag)
        )
        self.options = options
        self._is_sharded = options.shard_optimizer and world.size > 1
        self._parts = travelling_parts(num_words, world.size, options)
        self._reduction = TreeReduction(
            self.layout,
            world.communicator,
            world.device,
            parts=self._parts,
            leaves_shares=self._is_sharded,
        )
        self._collector = GradientCollector(gradients, self._parts)
        self._overlaps = bool(self._parts) and world.size > 1
        self._float32 = torch.zeros(0, device=world.device)
        self._was_late = self.is_alone = False

    @property
    def num_payloads(self) -> int:
        """Partial sums that this worker has kept at once so far."""
        return self._reduction.num_payloads

    def ownership(self, optimizer: torch.optim.Optimizer) -> Ownership:
        """Who updates what; the same at W = 1 as elsewhere in what it refuses.

        Raises:
            ConfigError: a sharded optimizer that looks beyond an element.
        """
        if self.options.shard_optimizer:
            refuse_beyond_elements(optimizer)
        if self._is_sharded and self._parts:
            return Sharded(self.gradients, optimizer, self._reduction.shared, self._parts)
        if self._is_sharded:  # a short gradient is whole on every worker; its weights are shared
            transport = SharedTransport(self._world.communicator)
            parts = gradient_parts(self.gradients.num_floats, 0, self.options.part_words)
            return Sharded(self.gradients, optimizer, transport, parts, gradient_is_whole=True)
        return Replicated(self.gradients, optimizer)

    def begin(self, num_leaves: int, *, alone: bool = False) -> range:
        """Starts a step; returns this worker's leaves. `alone`: they are looked at, not summed."""
        self._world.phases.enter(Phase.FORWARD)
        self._was_late, self.is_alone = False, alone
        return self._reduction.begin(num_leaves)

    @contextmanager
    def leaf(self, *, is_last: bool, hooks: bool = True) -> Iterator[Payload]:
        """A leaf of the tree, to be filled within; the gradient is taken from the parameters'.

        The last leaf's travels meanwhile, where it is long enough. With `hooks=False` what backward
        passes within leave in the parameters may be looked at, and is taken at the end.
        """
        leaf = self._reduction.leaf()
        views = self.gradients.buffer_views(leaf.gradient)
        travels = is_last and self._overlaps and not self.is_alone
        if travels:
            self._reduction.push(leaf, complete=False)
        ready = self._reduction.part_ready if travels else None
        with self._collector.watching(views, ready, hooks=hooks):
            yield leaf
        if self.is_alone:
            self._reduction.put_back(leaf)
        elif not travels:
            self._reduction.push(leaf)
        self._was_late = self._collector.was_late and travels

    def mark_present(self, present: torch.Tensor) -> None:
        """Notes in a leaf which parameters have a gradient."""
        self._collector.mark(present)

    def close(self, raised: Mapping[Flag, int]) -> Summed:
        """Exchanges what has not travelled yet."""
        raised = {**raised, Flag.LATE: int(self._was_late)}
        self._world.phases.enter(Phase.REDUCTION)
        reduced = self._reduction.sum([raised.get(kind, 0) for kind in Flag])
        self._world.phases.enter(Phase.UPDATE)
        flags = {kind: tuple(row[kind] for row in reduced.flags) for kind in Flag}
        is_wrong = any(flags[Flag.LATE])
        if is_wrong:
            self._overlaps = False
        gradient = reduced.gradient
        if gradient.dtype != torch.float32:
            if not len(self._float32):
                self._float32 = torch.zeros(len(gradient), device=self._world.device)
            gradient = self._float32.copy_(gradient)
        return Summed(reduced.total, gradient, flags, is_wrong)
