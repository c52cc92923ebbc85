"""Sums payloads over all micro-batches of a step along the tree, whoever computed which."""

from dataclasses import dataclass
from functools import lru_cache

import torch

from distrain.parallel.communicator import Communicator
from distrain.parallel.payload import Payload, PayloadLayout, new_payload
from distrain.parallel.split import owned_range
from distrain.parallel.tree import Fold, Node, covering_nodes, root


def merge(left: Payload, right: Payload) -> Payload:
    """A merge of the tree that writes over the left sibling."""
    return left.add_(right)


@lru_cache(maxsize=64)  # a run has two kinds of batches: full ones and an epoch's last
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
        by_rank = nodes_by_rank(self._num_leaves, self._communicator.world_size)
        # All workers send as many slots, since an all-gather wants equal shapes.
        most = max(len(nodes) for nodes in by_rank)
        if most == 1 and local:
            local[0].flag.fill_(flag)
            send = local[0].data.unsqueeze(0)
        else:
            send = torch.zeros(
                (most, self._layout.num_bytes), dtype=torch.uint8, device=self._device
            )
            for slot, payload in enumerate(local):
                send[slot].copy_(payload.data)
            Payload(send[0], self._layout).flag.fill_(flag)
        received = self._communicator.all_gather(send)
        at = self._layout.flag_start
        flags = received[:, 0, at : at + 8].contiguous().view(torch.int64).flatten().tolist()
        by_node = {
            node: Payload(received[rank, slot], self._layout)
            for rank, nodes in enumerate(by_rank)
            for slot, node in enumerate(nodes)
        }
        return by_node, tuple(flags)
