"""Sums payloads over all micro-batches of a step along the tree, whoever computed which."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from distrain.parallel.communicator import Communicator
from distrain.parallel.courier import Courier
from distrain.parallel.payload import Payload, PayloadLayout, new_payload
from distrain.parallel.split import owned_range
from distrain.parallel.transport import SharedTransport, WholeTransport
from distrain.parallel.tree import Fold, Node, root


@dataclass(frozen=True)
class Reduced:
    """What an exchange brought, the same on every worker.

    Attributes:
        total: The sum over all leaves; good until the next `begin`.
        gradient: `(num_gradient,)`, its gradient, which may lie elsewhere. Of a reduction that
            leaves shares, only the words of this worker's shares are meant.
        flags: Each worker's flags, by rank.
    """

    total: Payload
    gradient: torch.Tensor
    flags: tuple[tuple[int, ...], ...]


def _add(left: Payload, right: Payload) -> Payload:
    return left.add_(right)


class TreeReduction:
    """Folds this worker's leaves, exchanges the partial sums, folds the rest.

    Usage, for a step of `num_leaves` micro-batches: `begin(num_leaves)`, then for each owned leaf
    in order fill `leaf()` and `push()` it, then `sum()`.

    A gradient cut into `parts` can be exchanged while the last leaf is still being filled:
    `push(leaf, complete=False)` it before, and call `part_ready` for one part after another.
    """

    def __init__(
        self,
        layout: PayloadLayout,
        communicator: Communicator,
        device: torch.device,
        *,
        parts: Sequence[range] = (),
        leaves_shares: bool = False,
    ) -> None:
        """Buffers are made as they are needed and used again.

        Args:
            layout: Of a leaf; each worker has the same number of its flags.
            communicator: What the workers exchange by.
            device: Where the leaves are.
            parts: Ranges of the gradient's words that travel apart from the rest, in shares. None
                for a short gradient, which travels with the rest.
            leaves_shares: Each worker is left with the sums over its own shares of the parts.
        """
        self._layout, self._communicator, self._device = layout, communicator, device
        self._parts = tuple(parts) if communicator.world_size > 1 else ()
        self._leaves_shares = leaves_shares
        self._spare: list[Payload] = []
        self._num_leaves = 0
        self._fold: Fold[Payload] | None = None
        self._open: list[tuple[Payload, Payload]] | None = None
        self._num_ready = 0
        travels = layout.head if self._parts else layout
        self._whole = WholeTransport(travels, communicator, device)
        if self._parts:
            self.shared = SharedTransport(communicator.another("parts"))
            self._courier = Courier(device)

    @property
    def num_payloads(self) -> int:
        """Payloads that this worker has needed at once so far."""
        return len(self._spare)

    def begin(self, num_leaves: int) -> range:
        """Starts a sum; returns the leaves that this worker owns."""
        rank, size = self._communicator.rank, self._communicator.world_size
        owned = owned_range(num_leaves, rank, size)
        self._num_leaves, self._open, self._num_ready = num_leaves, None, 0
        self._fold = Fold(owned, num_leaves, self._merge)
        return owned

    def leaf(self) -> Payload:
        """A payload to fill; its words hold whatever was there before, but for the flags."""
        if not self._spare:
            return new_payload(self._layout, self._device)
        leaf = self._spare.pop()
        leaf.flags.zero_()
        return leaf

    def put_back(self, leaf: Payload) -> None:
        """Gives back a payload that is not pushed; it stays as it is until the next `leaf`."""
        self._spare.append(leaf)

    def push(self, leaf: Payload, *, complete: bool = True) -> None:
        """Takes the next owned leaf; the last one may still have to be filled."""
        assert self._fold is not None, "begin comes first"
        self._open = None if complete else []
        self._fold.push(leaf)

    def _merge(self, left: Payload, right: Payload) -> Payload:
        if self._open is not None:  # to be done when the words are there
            self._open.append((left, right))
            return left
        self._spare.append(right)
        return left.add_(right)

    def part_ready(self, part: int) -> None:
        """Every leaf has its words of the part: they may travel. Parts come in their order."""
        assert part == self._num_ready
        self._num_ready += 1
        if self._num_ready < len(self._parts):  # the last one is as quick without a thread
            assert self._fold is not None
            held = self._fold.nodes()
            self._courier.submit(partial(self._sum_part, self._parts[part], held, held[0][1]))

    def _sum_part(self, part: range, held: Sequence[tuple[Node, Payload]], total: Payload) -> None:
        for left, right in self._open or ():
            left.gradient[part.start : part.stop] += right.gradient[part.start : part.stop]
        vectors = [(node, payload.gradient) for node, payload in held]
        sum_part = self.shared.sum_share if self._leaves_shares else self.shared.sum_all
        sum_part(part, vectors, self._num_leaves, total.gradient)

    def sum(self, flags: Sequence[int] = ()) -> Reduced:
        """The sum over all leaves, and the flags that the workers have raised.

        Every worker takes part, also one that owns no leaf.
        """
        assert self._fold is not None, "begin comes first"
        held = self._fold.nodes()
        first = held[0][1] if held else self.leaf()
        if self._parts:
            sent = min(self._num_ready, len(self._parts) - 1)
            self._courier.wait()
            for part in self._parts[sent:]:
                self._sum_part(part, held, first)
            for left, right in self._open or ():
                left.add_head_(right)
                self._spare.append(right)
        self._fold, self._open = None, None
        self._spare += [payload for _, payload in held] or [first]
        rank, size = self._communicator.rank, self._communicator.world_size
        for at, flag in enumerate(flags, start=rank * len(flags)):
            first.flags[at] = flag
        if size == 1:
            total = root(dict(held), self._num_leaves, _add)
        else:
            total = self._whole.sum(held, self._num_leaves, first)
        by_rank = total.flags.view(size, len(flags)).tolist()
        gradient = first.gradient if self._parts else total.gradient
        return Reduced(total, gradient, tuple(tuple(row) for row in by_rank))
