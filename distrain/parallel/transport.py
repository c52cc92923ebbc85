"""Two ways to bring partial sums to all workers: whole ones, or shares of them. The same bits.

Whole: in every round a worker sends all that it holds: the fewest messages, for small payloads.
Shares: in every round a worker keeps a share of the words and sends the others away; then the
totals go back in the opposite order. The fewest bytes, for large ones; and a worker that updates
the weights of its share alone needs the first half only.

Either takes any number of workers and of leaves. Where a worker's range of leaves is unaligned it
holds, and sends, several partial sums (rule 5).
"""

from collections.abc import Sequence
from functools import cache, partial

import torch

from distrain.numerics import ALIGNMENT, NORM_BLOCK
from distrain.parallel.communicator import Communicator, Message
from distrain.parallel.payload import Payload, PayloadLayout
from distrain.parallel.route import (
    Round,
    held_leaves,
    held_nodes,
    rounds,
    split_words,
    whole_words,
)
from distrain.parallel.split import owned_range
from distrain.parallel.tree import Node, folded

_whole_words, _split_words, _held_nodes = cache(whole_words), cache(split_words), cache(held_nodes)
"""Asked with the same numbers at each step."""


class WholeTransport:
    """Sums payloads, and adds up everybody's flags."""

    def __init__(
        self, layout: PayloadLayout, communicator: Communicator, device: torch.device
    ) -> None:
        """`layout` is that of what travels: with the gradient or without."""
        self._layout, self._communicator, self._device = layout, communicator, device
        rank, size = communicator.rank, communicator.world_size
        everybody = (Round(tuple(range(size)), rank, 1),)
        at_once = communicator.gathers_at_once
        self._rounds = everybody if at_once else rounds(rank, size, communicator.local_size)
        self._inboxes: dict[tuple[int, int], _Inbox] = {}

    def sum(self, held: Sequence[tuple[Node, Payload]], num_leaves: int, spare: Payload) -> Payload:
        """The sum over all leaves of what all workers hold; writes over what this one does.

        A worker that holds nothing sends `spare` for the sake of its flags.
        """
        own = {id(payload) for _, payload in held}
        merge = partial(self._merge, own)
        nodes, without = dict(held), [] if held else [spare]
        for number, one in enumerate(self._rounds):
            inbox = self._inbox(number, one, num_leaves)
            sent = list(nodes.values()) or without
            if self._communicator.gathers_at_once:
                inbox.gather(sent)
                nodes, without = dict[Node, Payload](), list[Payload]()
            else:
                inbox.exchange(sent)
            nodes, without = nodes | inbox.nodes, without + inbox.without_nodes
            carrier = next(iter((*nodes.values(), *without)))
            for payload in without:
                if payload is not carrier:
                    carrier.flags.add_(payload.flags)
            nodes = dict(folded(nodes, inbox.leaves, num_leaves, merge))
            without = [] if nodes else [carrier]
        return next(iter(nodes.values()))

    def _merge(self, own: set[int], left: Payload, right: Payload) -> Payload:
        """Into this worker's own payload where it is one of the two: the sum then stays there."""
        if id(right) in own and id(left) not in own:
            left, right = right, left
        return left.add_(right) if self._layout.num_gradient else left.add_head_(right)

    def _inbox(self, number: int, one: Round, num_leaves: int) -> "_Inbox":
        key = number, num_leaves
        if key not in self._inboxes:
            self._inboxes[key] = _Inbox(
                one, num_leaves, self._communicator, self._layout, self._device
            )
        return self._inboxes[key]


class _Inbox:
    """Where payloads arrive in one round of a sum over so many leaves; used again each time.

    Attributes:
        leaves: What all members of the round hold together.
        nodes: The payloads that arrive, by node; with this worker's own in an all-gather.
        without_nodes: Those of members without a leaf, which have flags alone.
    """

    def __init__(
        self,
        one: Round,
        num_leaves: int,
        communicator: Communicator,
        layout: PayloadLayout,
        device: torch.device,
    ) -> None:
        size, me = communicator.world_size, one.members[one.digit]
        self._communicator, self._num_bytes = communicator, layout.num_bytes
        self.leaves = held_leaves(one.union, num_leaves, size)
        by_rank = {rank: held_nodes(one.group(rank), num_leaves, size) for rank in one.members}
        # An all-gather wants as many slots from everybody.
        slots = max(1, *(len(nodes) for nodes in by_rank.values()))
        shape = (len(one.members), slots, layout.num_bytes)
        self._blocks = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._outgoing = torch.zeros_like(self._blocks[0]) if slots > 1 else None
        self._peers = [rank for rank in one.members if rank != me]
        self._receives: list[Message] = []
        self.nodes: dict[Node, Payload] = {}
        self.without_nodes: list[Payload] = []
        for block, (rank, nodes) in zip(self._blocks, by_rank.items(), strict=True):
            if rank == me and not communicator.gathers_at_once:
                continue
            payloads = [Payload(row, layout) for row in block[: max(1, len(nodes))]]
            self._receives += [(rank, payload.data) for payload in payloads]
            self.nodes |= zip(nodes, payloads, strict=False)
            self.without_nodes += [] if nodes else payloads

    def exchange(self, sent: Sequence[Payload]) -> None:
        """This worker's payloads to all other members, and theirs to this one."""
        sends = [
            (rank, payload.data[: self._num_bytes]) for rank in self._peers for payload in sent
        ]
        self._communicator.exchange(sends, self._receives)

    def gather(self, sent: Sequence[Payload]) -> None:
        """The same by one all-gather; `nodes` then has this worker's as well."""
        send = sent[0].data[: self._num_bytes].unsqueeze(0)
        if self._outgoing is not None:
            for slot, payload in zip(self._outgoing, sent, strict=False):
                slot.copy_(payload.data[: self._num_bytes])
            send = self._outgoing
        self._communicator.all_gather(send, out=self._blocks)


class SharedTransport:
    """Sums long vectors of equal words, each worker folding a share."""

    def __init__(self, communicator: Communicator) -> None:
        """Every worker makes it."""
        self.communicator = communicator
        self._size = communicator.world_size
        self._rounds = rounds(communicator.rank, self._size, communicator.local_size)
        self._scratch = _Scratch()
        self._kept: list[range] = []
        shares = range(self._size)
        for one in self._rounds:
            shares = _cut(shares, len(one.members))[one.digit]
            self._kept.append(shares)

    def share(self, part: range, shares: range | None = None) -> range:
        """The words of a part of the vector that make up some shares; this worker's by default.

        Cut where blocks of the norm and lines of 16 floats end (rules 8 and 9).
        """
        shares = (self._kept[-1] if self._kept else range(1)) if shares is None else shares
        blocks = -(-len(part) // NORM_BLOCK)
        first = owned_range(blocks, shares.start, self._size).start
        last = owned_range(blocks, shares.stop - 1, self._size).stop
        start = part.start + first * NORM_BLOCK
        return range(min(start, part.stop), min(part.start + last * NORM_BLOCK, part.stop))

    def sum_share(
        self,
        part: range,
        held: Sequence[tuple[Node, torch.Tensor]],
        num_leaves: int,
        total: torch.Tensor,
    ) -> None:
        """Puts the sum over this worker's share of the part into the vector `total`.

        `held` are vectors as long as `total`, which may be one of them; they are written over.
        """
        self._sum(part, held, num_leaves, total, shares=True)

    def sum_all(
        self,
        part: range,
        held: Sequence[tuple[Node, torch.Tensor]],
        num_leaves: int,
        total: torch.Tensor,
    ) -> None:
        """Puts the sum over the whole part into `total`, by whichever way sends fewer words."""
        sizes = num_leaves, self._size, self.communicator.local_size
        if _whole_words(len(part), *sizes) <= sum(_split_words(len(part), *sizes)):
            self._sum(part, held, num_leaves, total, shares=False)
        else:
            self._sum(part, held, num_leaves, total, shares=True)
            self.spread([part], total)

    def _sum(
        self,
        part: range,
        held: Sequence[tuple[Node, torch.Tensor]],
        num_leaves: int,
        total: torch.Tensor,
        *,
        shares: bool,
    ) -> None:
        self._scratch.clear()
        home = total.untyped_storage().data_ptr()

        def merge(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            if right.untyped_storage().data_ptr() == home:
                left, right = right, left
            return left.add_(right)

        here, kept = part, range(self._size)
        nodes = {node: vector[part.start : part.stop] for node, vector in held}
        for one in self._rounds:
            cuts = [here] * len(one.members)
            if shares:
                cuts = [self.share(part, some) for some in _cut(kept, len(one.members))]
                kept = _cut(kept, len(one.members))[one.digit]
            keep = cuts[one.digit]
            sends: list[Message] = []
            receives: list[Message] = []
            arrived: dict[Node, torch.Tensor] = {}
            for rank, cut in zip(one.members, cuts, strict=True):
                if rank == one.members[one.digit]:
                    continue
                sends += [(rank, _within(here, cut, words)) for words in nodes.values()]
                for node in _held_nodes(one.group(rank), num_leaves, self._size):
                    arrived[node] = self._scratch.take(len(keep), total)
                    receives.append((rank, arrived[node]))
            self.communicator.exchange(_filled(sends), _filled(receives))
            mine = {node: _within(here, keep, words) for node, words in nodes.items()}
            leaves = held_leaves(one.union, num_leaves, self._size)
            nodes, here = dict(folded(mine | arrived, leaves, num_leaves, merge)), keep
        (found,) = nodes.values()
        own = total[here.start : here.stop]
        if found.data_ptr() != own.data_ptr():
            own.copy_(found)

    def spread(self, parts: Sequence[range], vector: torch.Tensor) -> None:
        """Brings every worker's share of some parts to all workers, in place."""
        for one, kept in zip(reversed(self._rounds), reversed(self._kept), strict=True):
            width = len(kept)
            first = kept.start - one.digit * width
            sends: list[Message] = []
            receives: list[Message] = []
            for digit, rank in enumerate(one.members):
                if digit == one.digit:
                    continue
                theirs = range(first + digit * width, first + (digit + 1) * width)
                for part in parts:
                    out, into = self.share(part, kept), self.share(part, theirs)
                    sends.append((rank, vector[out.start : out.stop]))
                    receives.append((rank, vector[into.start : into.stop]))
            self.communicator.exchange(_filled(sends), _filled(receives))


def _within(here: range, cut: range, words: torch.Tensor) -> torch.Tensor:
    """The words of `cut` from those of `here`."""
    return words[cut.start - here.start : cut.stop - here.start]


def _cut(shares: range, pieces: int) -> list[range]:
    width = len(shares) // pieces
    return [range(start, start + width) for start in range(shares.start, shares.stop, width)]


def _filled(messages: Sequence[Message]) -> list[Message]:
    """A part of fewer blocks than workers leaves some without a share: nothing is sent there."""
    return [message for message in messages if len(message[1])]


class _Scratch:
    """Memory for what arrives, used again by the next sum."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._used = self._wanted = 0

    def clear(self) -> None:
        """What was taken is of no use any more."""
        self._used = self._wanted = 0

    def take(self, num_words: int, like: torch.Tensor) -> torch.Tensor:
        """`(num_words,)` of the dtype and on the device of `like`; not initialised."""
        num_bytes = -(-num_words * like.dtype.itemsize // ALIGNMENT) * ALIGNMENT
        self._wanted += num_bytes
        if self._used + num_bytes > len(self._block):
            # What was taken of the old block lives on until its users are done.
            size = max(self._wanted, 2 * len(self._block))
            self._block = torch.empty(size, dtype=torch.uint8, device=like.device)
            self._used = 0
        taken = self._block[self._used : self._used + num_words * like.dtype.itemsize]
        self._used += num_bytes
        return taken.view(like.dtype)
