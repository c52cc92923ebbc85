"""In which rounds partial sums travel, as pure logic. The tree fixes the bits; this, the bytes.

W is cut into factors, those of a host first: the workers of one host have consecutive ranks, and
meet before anything leaves the host. In round k a worker meets those whose ranks differ from its
own in the k-th digit alone. For W = 4 = 2 x 2:

    round 1    0 -- 1    2 -- 3        neighbours, so siblings of the tree
    round 2    0 -- 2    1 -- 3

Factors of 2 are recursive halving and doubling (Thakur et al. 2005, "Optimization of collective
communication operations in MPICH"); a prime W is one round in which everybody meets.
"""

from dataclasses import dataclass

from distrain.parallel.split import owned_range
from distrain.parallel.tree import Node, covering_nodes


@dataclass(frozen=True)
class Round:
    """Whom a worker meets.

    Attributes:
        members: Ranks in ascending order, this worker's among them.
        digit: This worker's place in `members`.
        stride: Before the round, each member stands for so many consecutive ranks.
    """

    members: tuple[int, ...]
    digit: int
    stride: int

    def group(self, rank: int) -> range:
        """The consecutive ranks whose leaves a member holds before the round."""
        start = rank // self.stride * self.stride
        return range(start, start + self.stride)

    @property
    def union(self) -> range:
        """The consecutive ranks whose leaves all members hold together."""
        start = self.members[0] // self.stride * self.stride
        return range(start, start + self.stride * len(self.members))


def rounds(rank: int, world_size: int, local_size: int) -> tuple[Round, ...]:
    """A worker's rounds; `local_size` workers of each host meet first, where that divides W."""
    inside = local_size if world_size % local_size == 0 else world_size
    found: list[Round] = []
    stride = 1
    for factor in (*prime_factors(inside), *prime_factors(world_size // inside)):
        digit = rank // stride % factor
        members = tuple(rank + (other - digit) * stride for other in range(factor))
        found.append(Round(members, digit, stride))
        stride *= factor
    return tuple(found)


def prime_factors(number: int) -> list[int]:
    """In ascending order; none for 1."""
    found: list[int] = []
    factor = 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return found


def held_leaves(ranks: range, num_leaves: int, world_size: int) -> range:
    """The leaves of consecutive ranks."""
    start = owned_range(num_leaves, ranks.start, world_size).start
    return range(start, owned_range(num_leaves, ranks.stop - 1, world_size).stop)


def held_nodes(ranks: range, num_leaves: int, world_size: int) -> list[Node]:
    """The partial sums to which the leaves of consecutive ranks fold: none for no leaf."""
    return covering_nodes(held_leaves(ranks, num_leaves, world_size), num_leaves)


def whole_words(
    num_words: int, num_leaves: int, world_size: int, local_size: int = 0, *, aligned: bool = False
) -> int:
    """Words that the busiest worker sends if every round carries whole partial sums.

    `aligned`: as if every range of leaves were a single node of the tree.
    """
    return num_words * max(
        sum(
            (1 if aligned else max(1, len(held_nodes(one.group(rank), num_leaves, world_size))))
            * (len(one.members) - 1)
            for one in rounds(rank, world_size, local_size or world_size)
        )
        for rank in range(world_size)
    )


def gathered_words(
    num_words: int, num_leaves: int, world_size: int, *, aligned: bool = False
) -> int:
    """The same by one all-gather, which has as many slots for everybody as the busiest fills."""
    most = max(
        len(held_nodes(range(rank, rank + 1), num_leaves, world_size)) for rank in range(world_size)
    )
    return num_words * (1 if aligned else max(1, most)) * (world_size - 1)


def split_words(
    num_words: int, num_leaves: int, world_size: int, local_size: int = 0, *, aligned: bool = False
) -> tuple[int, int]:
    """Words that the busiest worker sends if rounds carry shares: partial sums, then totals."""
    sums, totals = 0.0, 0.0
    for rank in range(world_size):
        share, sent = float(num_words), 0.0
        for one in rounds(rank, world_size, local_size or world_size):
            share /= len(one.members)
            nodes = len(held_nodes(one.group(rank), num_leaves, world_size))
            sent += share * (len(one.members) - 1) * (min(1, nodes) if aligned else nodes)
        sums, totals = max(sums, sent), num_words - share
    return round(sums), round(totals)
