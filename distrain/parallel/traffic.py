"""How many bytes a step's sum takes, by arithmetic: here, or in a group of other workers."""

from dataclasses import dataclass

import torch

from distrain.parallel.communicator import Communicator
from distrain.parallel.payload import PayloadLayout
from distrain.parallel.route import gathered_words, split_words, whole_words
from distrain.parallel.summing import SumOptions


@dataclass(frozen=True)
class Group:
    """Workers that could exchange a step's sums.

    Attributes:
        size: How many.
        local_size: Of each host.
        at_once: What travels whole does so by one all-gather.
    """

    size: int
    local_size: int
    at_once: bool

    @classmethod
    def here(cls, communicator: Communicator) -> "Group":
        """The workers that there are."""
        at_once = communicator.gathers_at_once
        return cls(communicator.world_size, communicator.local_size, at_once=at_once)


@dataclass(frozen=True)
class Sent:
    """Bytes of a step that the busiest worker sends: all, and those for unaligned ranges."""

    num_bytes: int
    unaligned: int


def sent_by(group: Group, layout: PayloadLayout, num_leaves: int, options: SumOptions) -> Sent:
    """What the busiest worker of a group sends; `layout` is that of its partial sums.

    The weights of a sharded optimizer are counted too.
    """
    all_of_it, aligned = (
        _sent_bytes(group, layout, num_leaves, options, aligned=aligned)
        for aligned in (False, True)
    )
    return Sent(all_of_it, all_of_it - aligned)


def _sent_bytes(
    group: Group, layout: PayloadLayout, num_leaves: int, options: SumOptions, *, aligned: bool
) -> int:
    if group.size == 1:
        return 0
    sizes = num_leaves, group.size
    count = layout.num_gradient
    sums, totals = split_words(count, *sizes, group.local_size, aligned=aligned)
    in_parts = count > options.most_whole(group.size)
    whole = (layout.head if in_parts else layout).num_bytes
    if group.at_once:
        sent = gathered_words(whole, *sizes, aligned=aligned)
    else:
        sent = whole_words(whole, *sizes, group.local_size, aligned=aligned)
    if in_parts and options.shard_optimizer:
        sent += layout.gradient_dtype.itemsize * sums
    elif in_parts:
        uncut = whole_words(count, *sizes, group.local_size, aligned=aligned)
        sent += layout.gradient_dtype.itemsize * min(sums + totals, uncut)
    if options.shard_optimizer:
        sent += torch.float32.itemsize * totals
    return sent
