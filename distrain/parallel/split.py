"""Who computes what: epochs to global batches, global batches to micro-batches, those to workers.

    epoch    |<------------------------- num_rows ------------------------->|
    batches  |<---- global_batch ---->|<---- global_batch ---->|<- short -->|
    micro    |  0  |  1  |  2  |  3   |  0  |  1  |  2  |  3   |  0  |  1 |
    W = 2    |  worker 0 | worker 1   |  worker 0 | worker 1   | w 0 | w1 |

Pure arithmetic over positions in the epoch's order (rule 3); no rank enters what a micro-batch is.
"""

from dataclasses import dataclass
from typing import Literal

from distrain.config import check_micro_batch, default_micro_batch
from distrain.errors import ConfigError


def owned_range(num_items: int, rank: int, world_size: int) -> range:
    """The consecutive items that a worker owns: [rank * n // W, (rank + 1) * n // W)."""
    return range(rank * num_items // world_size, (rank + 1) * num_items // world_size)


def useful_world_sizes(num_micro_batches: int) -> list[int]:
    """The numbers of workers that are faster than one less: the busiest worker has less to do."""
    sizes, busiest = [], num_micro_batches + 1
    for size in range(1, num_micro_batches + 1):
        if -(-num_micro_batches // size) < busiest:
            sizes.append(size)
            busiest = -(-num_micro_batches // size)
    return sizes


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one update: positions [start, stop) of `epoch`, cut into micro-batches.

    Attributes:
        step: Counted from 0 over the whole run.
        epoch: Counted from 0.
    """

    step: int
    epoch: int
    start: int
    stop: int
    micro_batch: int

    @property
    def num_samples(self) -> int:
        """Samples, fewer than `global_batch` in an epoch's last batch."""
        return self.stop - self.start

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches that have samples: the leaves of this step's tree."""
        return -(-self.num_samples // self.micro_batch)

    def positions(self, micro_batches: range) -> tuple[int, int]:
        """The positions [start, stop) that consecutive micro-batches cover."""
        start = min(self.start + micro_batches.start * self.micro_batch, self.stop)
        return start, min(self.start + micro_batches.stop * self.micro_batch, self.stop)

    def owned(self, rank: int, world_size: int) -> range:
        """The micro-batches of one worker; none where there are fewer of them than workers."""
        return owned_range(self.num_micro_batches, rank, world_size)


@dataclass(frozen=True)
class BatchPlan:
    """All global batches of a run over `num_rows` rows an epoch.

    Raises:
        ConfigError: the micro-batch doesn't divide, or dropping the last batch leaves none.
    """

    num_rows: int
    global_batch: int
    micro_batch: int
    last_batch: Literal["keep", "drop"] = "keep"

    def __post_init__(self) -> None:
        """Checks that there is something to do."""
        check_micro_batch(self.global_batch, self.micro_batch)
        if not self.steps_per_epoch:
            raise ConfigError(
                f"{self.num_rows} rows give no batch of {self.global_batch} with "
                f'last_batch = "drop": lower global_batch, or keep the last batch'
            )

    @property
    def num_micro_batches(self) -> int:
        """M: the micro-batches of a full global batch, and the most workers of use."""
        return self.global_batch // self.micro_batch

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch."""
        if self.last_batch == "drop":
            return self.num_rows // self.global_batch
        return -(-self.num_rows // self.global_batch)

    def batch(self, step: int) -> GlobalBatch:
        """The global batch of a step: the position of a run is this one number."""
        epoch, number = divmod(step, self.steps_per_epoch)
        start = number * self.global_batch
        stop = min(start + self.global_batch, self.num_rows)
        return GlobalBatch(step, epoch, start, stop, self.micro_batch)

    def check_world_size(self, world_size: int) -> None:
        """Refuses more workers than micro-batches.

        Raises:
            ConfigError: says which micro-batch or how many workers would do.
        """
        most = self.num_micro_batches
        if world_size <= most:
            return
        fitting = [
            size
            for size in range(1, self.micro_batch)
            if self.global_batch % size == 0 and self.global_batch // size >= world_size
        ]
        smaller = (
            f"lower micro_batch from {self.micro_batch} to {fitting[-1]}, or " if fitting else ""
        )
        raise ConfigError(
            f"{world_size} workers, but a global batch of {self.global_batch} has only {most} "
            f"micro-batches of {self.micro_batch}: {smaller}start at most {most} workers"
        )


def plan_batches(
    num_rows: int,
    global_batch: int,
    micro_batch: int | None,
    last_batch: Literal["keep", "drop"] = "keep",
) -> BatchPlan:
    """The plan, with the default micro-batch where none is given; errors are `BatchPlan`'s."""
    size = default_micro_batch(global_batch) if micro_batch is None else micro_batch
    return BatchPlan(num_rows, global_batch, size, last_batch)
