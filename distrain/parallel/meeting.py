"""Where all micro-batches of a step, of all workers, meet in the middle of a pass.

One exchange a meeting. What a worker sends is as long at every meeting of a step, whoever stands
where: so micro-batches that have come to different places, as where only some take a branch, are
told so, and nobody waits for bytes that never come. In float64:

    | place of each own micro-batch | count of each | node 0 | node 1 | ...
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distrain.parallel.communicator import Communicator
from distrain.parallel.split import owned_range
from distrain.parallel.stacked_fold import Merge, fold_stacked, stacked_root
from distrain.parallel.tree import Node, covering_nodes

NOWHERE = 0
"""The place of a micro-batch that is not there: workers may own fewer than others."""


@dataclass(frozen=True)
class Met:
    """What a meeting brought, the same on every worker.

    Attributes:
        places: Where each micro-batch of the step stands.
        count: The sum of their counts.
    """

    places: Sequence[int]
    count: int


class Meetings:
    """The meetings of a step of so many micro-batches."""

    def __init__(
        self, num_leaves: int, num_words: int, communicator: Communicator, device: torch.device
    ) -> None:
        """`num_words` is the length of the longest row."""
        self._num_leaves, self._communicator = num_leaves, communicator
        rank, size = communicator.rank, communicator.world_size
        self._ranges = [owned_range(num_leaves, worker, size) for worker in range(size)]
        self.owned = self._ranges[rank]
        self._local: dict[Node, torch.Tensor] = {}
        self._arrived: dict[int, dict[Node, torch.Tensor]] = {}
        if size == 1:
            return
        self._by_rank = [covering_nodes(owned, num_leaves) for owned in self._ranges]
        most_leaves = max(len(owned) for owned in self._ranges)
        most_nodes = max(len(nodes) for nodes in self._by_rank)
        words = 2 * most_leaves + most_nodes * num_words
        self._send = torch.zeros(words, dtype=torch.float64, device=device)
        self._received = torch.zeros(size, words, dtype=torch.float64, device=device)
        self._head = 2 * most_leaves
        self._heads = self._received[:, : self._head]
        peers = [peer for peer in range(size) if peer != rank]
        self._sends = [(peer, self._send) for peer in peers]
        self._receives = [(peer, self._received[peer]) for peer in peers]
        self._outgoing = self._send[self._head :].view(most_nodes, num_words)
        self._incoming = self._received[:, self._head :].view(size, most_nodes, num_words)

    def meet(
        self, places: Sequence[int], counts: Sequence[int], rows: torch.Tensor | None, merge: Merge
    ) -> Met:
        """One exchange, which all workers enter.

        Args:
            places: Where each of the own micro-batches stands, as a number above 0.
            counts: Values that each has counted.
            rows: `(k, words)`, float64, what each brings; None where they don't stand at one place.
            merge: How two rows make one.
        """
        self._local = {}
        if rows is not None:
            self._local = fold_stacked(rows, self.owned.start, self._num_leaves, merge)
        if self._communicator.world_size == 1:
            return Met(places, sum(counts))
        half = self._head // 2
        padding = [NOWHERE] * (half - len(places))
        head = torch.tensor([*places, *padding, *counts, *padding], dtype=torch.float64)
        self._send[: self._head] = head
        for slot, row in zip(self._outgoing, self._local.values(), strict=False):
            slot[: len(row)] = row
        self._travel()
        heads = self._heads.tolist()
        everywhere = [
            int(place)
            for owned, theirs in zip(self._ranges, heads, strict=True)
            for place in theirs[: len(owned)]
        ]
        return Met(everywhere, sum(int(count) for theirs in heads for count in theirs[half:]))

    def _travel(self) -> None:
        """What all workers send, to all of them."""
        if self._communicator.gathers_at_once:
            self._communicator.all_gather(self._send, out=self._received)
            return
        self._received[self._communicator.rank] = self._send
        self._communicator.exchange(self._sends, self._receives)

    def total(self, num_words: int, merge: Merge) -> torch.Tensor:
        """The row of all micro-batches together, `(num_words,)`, of the last meeting.

        Of use only where all stood at one place; `num_words` is the length of a row there.
        """
        if self._communicator.world_size == 1:
            return stacked_root(self._local, self._num_leaves, merge)
        if num_words not in self._arrived:
            self._arrived[num_words] = {
                node: self._incoming[rank, slot, :num_words]
                for rank, theirs in enumerate(self._by_rank)
                for slot, node in enumerate(theirs)
            }
        nodes = self._arrived[num_words]
        total = stacked_root(nodes, self._num_leaves, merge)
        # A single node is passed up as it is: it lies where the next meeting's arrive.
        return total.clone() if len(nodes) == 1 else total
