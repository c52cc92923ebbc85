"""How long does it take to sum one vector over all workers, and how many bytes leave each?

A vector of so many floats for every micro-batch, from 10,000 to 100,000,000 floats:

    distrain      TreeReduction, in the parts that a training step would choose
    whole         the same, whole partial sums in rounds of neighbours
    all_gather    the same, whole partial sums by one all-gather
    shares        the same, partial sums of shares, then totals
    all_reduce    torch.distributed.all_reduce: a ring, in place
    horovod       hvd.allreduce_ with op=Sum: a ring, in place

All of them in one group of processes: Horovod's, where it is installed, and torch's gloo beside it.
The transports' totals must have the bits of the tree on one worker, the peers' be the sum in
float64 but for rounding. Rounds are interleaved, each beginning with another variant, which is set
up anew and sums once, unmeasured. Before each measured sum the vectors are filled and the workers
wait for each other; the clock runs for the sum alone, on the slowest worker. What a worker adds of
its own micro-batches is off the clock, for the peers too. With more micro-batches than workers, a
worker whose range of them is unaligned sends several partial sums.

Horovod's thread takes a turn every millisecond, also while others sum: `--variants` without
`horovod` has a group without it.

    python -m benchmarks.reduction [--workers 2] [--micro-batches M] [--rounds 9]
                                   [--seconds 0.6] [--sizes 1e4,1e8]
                                   [--variants shares,horovod] [--out FILE.json]
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import distributed

from benchmarks.conditions import conditions, ratios, spread
from distrain.config import Backend
from distrain.numerics import fix_kernels
from distrain.parallel import world as worlds
from distrain.parallel.communicator import Alone, TorchCommunicator
from distrain.parallel.gradients import gradient_parts
from distrain.parallel.payload import PayloadLayout
from distrain.parallel.reduction import TreeReduction
from distrain.parallel.route import held_nodes, split_words, whole_words
from distrain.parallel.split import owned_range
from distrain.parallel.summing import PART_WORDS, Flag, SumOptions, travelling_parts
from distrain.parallel.transport import SharedTransport
from distrain.parallel.tree import Node
from launch.local import run_workers

SIZES = "1e4,1e5,1e6,1e7,1e8"
PERIOD = 65_521
"""Vectors repeat themselves after so many words, a prime: what lands elsewhere is seen."""
TOLERANCE = 1e-5
OURS = "distrain"
PEERS = ("all_reduce", "horovod")


@dataclass(frozen=True)
class Case:
    """One vector to be summed: its words, over so many leaves, on so many workers."""

    num_floats: int
    num_leaves: int
    workers: int


class Group(TorchCommunicator):
    """All workers on gloo; `at_once` has whole payloads travel by one all-gather."""

    def __init__(self, *, at_once: bool = False) -> None:
        """Of the default group."""
        super().__init__()
        self.gathers_at_once = at_once


class SharesAlone(SharedTransport):
    """Shares also where whole partial sums would be as many words."""

    def sum_all(
        self,
        part: range,
        held: Sequence[tuple[Node, torch.Tensor]],
        num_leaves: int,
        total: torch.Tensor,
    ) -> None:
        """Puts the sum over the whole part into `total`."""
        self.sum_share(part, held, num_leaves, total)
        self.spread([part], total)


@dataclass(frozen=True)
class Contestant:
    """A way to sum. `fill` brings this worker's vectors, `total` the sum, for which the clock runs.

    `total` may write over what was filled.
    """

    fill: Callable[[], None]
    total: Callable[[], torch.Tensor]


@dataclass
class Found:
    """Of one case: by variant milliseconds by round, sums a round, and whom memory left out."""

    ms: dict[str, list[float]]
    repeats: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@cache
def pattern(leaf: int) -> torch.Tensor:
    """`(PERIOD,)`, what a leaf's vector repeats."""
    return torch.randn(PERIOD, generator=torch.Generator().manual_seed(leaf))


def tile(vector: torch.Tensor, words: torch.Tensor) -> None:
    """Fills a vector with the words, over and over."""
    whole = len(vector) // PERIOD * PERIOD
    vector[:whole].view(-1, PERIOD).copy_(words)
    vector[whole:].copy_(words[: len(vector) - whole])


def filled(reduction: TreeReduction, num_leaves: int) -> None:
    """Pushes this worker's leaves."""
    for number in reduction.begin(num_leaves):
        leaf = reduction.leaf()
        tile(leaf.gradient, pattern(number))
        reduction.push(leaf)


def by_tree(name: str, case: Case, group: Group) -> Contestant:
    """Ours, by one transport or, as `OURS`, by what a step would choose."""
    parts: tuple[range, ...] = ()
    if name == OURS:
        parts = travelling_parts(case.num_floats, case.workers, SumOptions())
    elif name == "shares":
        parts = gradient_parts(case.num_floats, 0, PART_WORDS)
    communicator = Group(at_once=True) if name == "all_gather" else group
    layout = PayloadLayout(0, 0, 0, case.num_floats, num_flags=len(Flag) * case.workers)
    reduction = TreeReduction(layout, communicator, torch.device("cpu"), parts=parts)
    if name == "shares":
        reduction.shared = SharesAlone(group.another("parts"))
    flags = [0] * len(Flag)
    return Contestant(
        lambda: filled(reduction, case.num_leaves), lambda: reduction.sum(flags).gradient
    )


def by_peer(name: str, case: Case, group: Group) -> Contestant:
    """A ring that sums in place, over a vector in which the worker's own leaves are summed."""
    vector = torch.zeros(case.num_floats)
    words = torch.zeros(PERIOD)
    for number in owned_range(case.num_leaves, group.rank, case.workers):
        words += pattern(number)

    def all_reduce() -> torch.Tensor:
        distributed.all_reduce(vector)
        return vector

    def horovod() -> torch.Tensor:
        import horovod.torch as hvd  # noqa: PLC0415 - only who has it

        hvd.allreduce_(vector, op=hvd.Sum, name=f"benchmark {case.num_floats}")
        return vector

    return Contestant(lambda: tile(vector, words), all_reduce if name == "all_reduce" else horovod)


VARIANTS: Mapping[str, Callable[[str, Case, Group], Contestant]] = {
    **dict.fromkeys((OURS, "whole", "all_gather", "shares"), by_tree),
    **dict.fromkeys(PEERS, by_peer),
}


def check(name: str, total: torch.Tensor, num_leaves: int) -> None:
    """That a total is right; ours to the bit.

    Raises:
        RuntimeError: it is not.
    """
    if name in PEERS:
        leaves = torch.stack([pattern(number).double() for number in range(num_leaves)])
        wanted, room = leaves.sum(0), TOLERANCE * leaves.abs().sum(0)
    else:
        alone = TreeReduction(PayloadLayout(0, 0, 0, PERIOD), Alone(), torch.device("cpu"))
        filled(alone, num_leaves)
        wanted, room = alone.sum().gradient.double(), torch.zeros(PERIOD)
    for start in range(0, len(total), PERIOD):
        block = total[start : start + PERIOD]
        if not ((block - wanted[: len(block)]).abs() <= room[: len(block)]).all():
            raise RuntimeError(f"{name} sums {len(total)} floats wrongly")


def timed(contestant: Contestant, repeats: int, group: Group) -> float:
    """Seconds a sum, on the slowest worker's clock."""
    spent = 0.0
    for _ in range(repeats):
        contestant.fill()
        group.all_gather(torch.zeros(1))
        began = time.perf_counter()
        contestant.total()
        spent += time.perf_counter() - began
    spent_by_all = group.all_gather(torch.tensor([spent], dtype=torch.float64))
    return spent_by_all.max().item() / repeats


def measure(case: Case, known: argparse.Namespace, group: Group) -> Found:
    """Milliseconds a sum, the same numbers on every worker.

    Raises:
        RuntimeError: a variant does not sum rightly.
    """
    names: list[str] = known.variants
    free = group.all_gather(torch.tensor([free_bytes()])).min().item()
    fits = [name for name in names if needed_bytes(name, case) < 0.8 * free]
    found = Found(
        {name: [] for name in fits}, left_out=[name for name in names if name not in fits]
    )
    for number in range(known.rounds):
        first = number % max(1, len(fits))
        for name in (*fits[first:], *fits[:first]):
            contestant = VARIANTS[name](name, case, group)
            contestant.fill()
            total = contestant.total()
            if number == 0:
                check(name, total, case.num_leaves)
                seconds = timed(contestant, 1, group)
                found.repeats[name] = max(1, min(200, int(known.seconds / seconds)))
            found.ms[name].append(1e3 * timed(contestant, found.repeats[name], group))
            del contestant, total
            gc.collect()
    return found


def free_bytes() -> int:
    """Memory that this machine could still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(line.split()[1])


def needed_bytes(name: str, case: Case) -> int:
    """At most what a variant needs on all workers, who share one machine, together."""
    size, leaves = case.workers, case.num_leaves
    nodes = max(len(held_nodes(range(rank, rank + 1), leaves, size)) for rank in range(size))
    vectors = nodes + 1
    if name in ("whole", "all_gather") or not travelling_parts(case.num_floats, size, SumOptions()):
        vectors += nodes * (size + 1)
    return torch.float32.itemsize * case.num_floats * vectors * size


def sent_words(name: str, case: Case) -> float:
    """Words of the vector that the busiest worker sends in one sum."""
    numbers = case.num_floats, case.num_leaves, case.workers
    whole, shares = whole_words(*numbers), sum(split_words(*numbers))
    if name == "all_gather":
        ranks = range(case.workers)
        nodes = max(len(held_nodes(range(r, r + 1), *numbers[1:])) for r in ranks)
        return case.num_floats * max(1, nodes) * (case.workers - 1)
    if name in PEERS:
        return 2 * case.num_floats * (case.workers - 1) / case.workers
    if name == OURS:
        has_parts = bool(travelling_parts(case.num_floats, case.workers, SumOptions()))
        return min(whole, shares) if has_parts else whole
    return whole if name == "whole" else shares


def report(
    found: Mapping[Case, Found], known: argparse.Namespace, names: Sequence[str]
) -> dict[str, object]:
    return {
        "config": {
            "workers": known.workers,
            "micro_batches": known.micro_batches,
            "rounds": known.rounds,
        },
        "by_floats": {
            f"{case.num_floats:,}": {
                "ms": {name: spread(ms) for name, ms in of.ms.items()},
                "time_of_distrain_as_a_ratio_to": {
                    name: spread(ratios(of.ms[OURS], ms))
                    for name, ms in of.ms.items()
                    if name != OURS and OURS in of.ms
                },
                "mb_sent_by_the_busiest_worker": {
                    name: round(4e-6 * sent_words(name, case), 3) for name in of.ms
                },
                "sums_a_round": of.repeats,
                "left_out_for_memory": of.left_out,
            }
            for case, of in found.items()
        },
        **conditions(["horovod"] if "horovod" in names else []),
    }


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--micro-batches", type=int, help="by default one a worker")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.6, help="of a variant's sums in a round")
    parser.add_argument("--sizes", default=SIZES, help="numbers of floats")
    parser.add_argument(
        "--variants", default=",".join(VARIANTS), help=f"of these; {OURS} always runs"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    known.micro_batches = known.micro_batches or known.workers
    if not 2 <= known.workers <= known.micro_batches or known.rounds < 1:
        parser.error("at least 2 workers, as many micro-batches and 1 round are needed")
    known.sizes = [int(float(size)) for size in known.sizes.split(",")]
    asked = known.variants.split(",")
    if unknown := sorted(set(asked) - set(VARIANTS)):
        parser.error(f"no variant is called {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
    known.variants = [name for name in VARIANTS if name == OURS or name in asked]
    return known


def start_workers(known: argparse.Namespace, given: Sequence[str]) -> None:
    """Runs this file on every worker, by Horovod's launcher if Horovod is to be measured."""
    names = known.variants
    if "horovod" in names and find_spec("horovod") is None:
        print("Horovod is not installed: make horovod; left out: horovod", file=sys.stderr)
        names = [name for name in names if name != "horovod"]
    root = str(Path(__file__).resolve().parent.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.getenv("PYTHONPATH")]))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # torch's, beside Horovod's
    with tempfile.TemporaryDirectory() as folder:
        options = [*given, "--variants", ",".join(names), "--store", f"{folder}/store"]
        backend: Backend = "horovod" if "horovod" in names else "torch"
        cause = run_workers(["script", __file__, *options], known.workers, backend=backend)
    if cause is not None:
        sys.exit(cause.text)


def join(store: Path, *, with_horovod: bool) -> Group:
    """The group on gloo, of the launcher's workers."""
    rank = os.environ["HOROVOD_RANK" if with_horovod else "RANK"]
    size = os.environ["HOROVOD_SIZE" if with_horovod else "WORLD_SIZE"]
    if with_horovod:
        worlds.join("horovod")
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(size)
    )
    return Group()


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    known = parsed(given)
    if known.store is None:
        start_workers(known, given)
        return
    fix_kernels(1, deterministic=False)
    group = join(known.store, with_horovod="horovod" in known.variants)
    found: dict[Case, Found] = {}
    for size in known.sizes:
        case = Case(size, known.micro_batches, known.workers)
        found[case] = measure(case, known, group)
        if group.rank == 0:
            print(f"{size:,} floats done", file=sys.stderr)
            text = json.dumps(report(found, known, known.variants), indent=2)
            if known.out is not None:
                known.out.write_text(text + "\n")
    if group.rank == 0:
        print(text)
    worlds.leave()


if __name__ == "__main__":
    main()
