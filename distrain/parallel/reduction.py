"""Sums payloads over all micro-batches of a step along the tree, whoever computed which."""

from dataclasses import dataclass

import torch

from distrain.parallel.communicator import Communicator
from distrain.parallel.payload import Payload, PayloadLayout, new_payload
from distrain.parallel.split import owned_range
from distrain.parallel.tree import Fold, Node, covering_nodes, root


def merge(left: Payload, right: Payload) -> Payload:
    """A merge of the tree that writes over the left sibling."""
    return left.add_(right)


def nodes_by_rank(num_leaves: int, world_size: int) -> list[list[Node]]:
    """The nodes that each worker sends."""
    return [
        covering_nodes(owned_range(num_leaves, rank, world_size), num_leaves)
        for rank in range(world_size)
    ]


@dataclass(frozen=True)
class Reduced:
    """What an exchange brought, the same on every worker.

    Attributes:
        total: The sum over all leaves; good until the next `begin`.
        flags: Each worker's flag, by rank.
    """

    total: Payload
    flags: tuple[int, ...]


class TreeReduction:
    """Folds this worker's leaves, exchanges the partial sums once, folds the rest.

    Usage, for a step of `num_leaves` micro-batches: `begin(num_leaves)`, then for each owned leaf
    in order fill `leaf()` and `push()` it, then `sum()`.
    """

    def __init__(
        self, layout: PayloadLayout, communicator: Communicator, device: torch.device
    ) -> None:
        """Buffers are made as they are needed and used again."""
        self._layout, self._communicator, self._device = layout, communicator, device
        self._spare: list[Payload] = []
        self._num_leaves = 0
        self._fold: Fold[Payload] | None = None
        self._inboxes: dict[int, _Inbox] = {}

    @property
    def num_payloads(self) -> int:
        """Payloads that this worker has needed at once so far."""
        return len(self._spare)

    def begin(self, num_leaves: int) -> range:
        """Starts a sum; returns the leaves that this worker owns."""
        rank, size = self._communicator.rank, self._communicator.world_size
        owned = owned_range(num_leaves, rank, size)
        self._num_leaves = num_leaves
        self._fold = Fold(owned, num_leaves, self._merge)
        return owned

    def leaf(self) -> Payload:
        """A payload to fill; its words hold whatever was there before."""
        return self._spare.pop() if self._spare else new_payload(self._layout, self._device)

    def push(self, leaf: Payload) -> None:
        """Takes the next owned leaf."""
        assert self._fold is not None, "begin comes first"
        self._fold.push(leaf)

    def _merge(self, left: Payload, right: Payload) -> Payload:
        self._spare.append(right)
        return left.add_(right)

    def sum(self, flag: int = 0) -> Reduced:
        """The sum over all leaves, and the flags that the workers have raised.

        One exchange that every worker takes part in, also one that owns no leaf.
        """
        assert self._fold is not None, "begin comes first"
        local = self._fold.nodes()
        self._fold = None
        self._spare.extend(payload for _, payload in local)
        if self._communicator.world_size == 1:
            return Reduced(root(dict(local), self._num_leaves, merge), (flag,))
        nodes, flags = self._exchange([payload for _, payload in local], flag)
        return Reduced(root(nodes, self._num_leaves, merge), flags)

    def _exchange(
        self, local: list[Payload], flag: int
    ) -> tuple[dict[Node, Payload], tuple[int, ...]]:
        inbox = self._inboxes.get(self._num_leaves)
        if inbox is None:
            inbox = _Inbox(
                self._num_leaves, self._communicator.world_size, self._layout, self._device
            )
            self._inboxes[self._num_leaves] = inbox
        if inbox.num_slots == 1 and local:
            local[0].flag.fill_(flag)
            send = local[0].data.unsqueeze(0)
        else:
            # All workers send as many slots, since an all-gather wants equal shapes.
            send = inbox.outgoing()
            for slot, payload in zip(send, local, strict=False):
                slot.copy_(payload.data)
            Payload(send[0], self._layout).flag.fill_(flag)
        self._communicator.all_gather(send, out=inbox.received)
        return inbox.payloads, tuple(inbox.flags.tolist())


class _Inbox:
    """Where the partial sums of a step of so many leaves arrive: used again at each such step.

    Attributes:
        num_slots: Payloads that each worker sends; those with fewer nodes leave some unused.
        received: `(W, num_slots, num_bytes)`, uint8.
        payloads: The nodes' payloads within it.
        flags: `(W,)`, int64, the workers' flags within it.
    """

    def __init__(
        self, num_leaves: int, world_size: int, layout: PayloadLayout, device: torch.device
    ) -> None:
        by_rank = nodes_by_rank(num_leaves, world_size)
        self.num_slots = max(len(nodes) for nodes in by_rank)
        shape = (world_size, self.num_slots, layout.num_bytes)
        self.received = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.payloads = {
            node: Payload(self.received[rank, slot], layout)
            for rank, nodes in enumerate(by_rank)
            for slot, node in enumerate(nodes)
        }
        at = layout.flag_start
        self.flags = self.received[:, 0, at : at + 8].view(torch.int64)[:, 0]
        self._outgoing: torch.Tensor | None = None

    def outgoing(self) -> torch.Tensor:
        """A buffer for what this worker sends, `(num_slots, num_bytes)`."""
        if self._outgoing is None:
            self._outgoing = torch.zeros_like(self.received[0])
        return self._outgoing
