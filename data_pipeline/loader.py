"""`for batch in loader`: a data set's batches for any PyTorch loop, in an exact global shuffle."""

import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Literal, Self

import numpy as np
import torch

from data_pipeline.augment.transform import InputTransform, Transform
from data_pipeline.dataset import Dataset
from data_pipeline.heads import Span
from data_pipeline.on_device import OnDevice
from data_pipeline.prefetch import Prefetcher
from data_pipeline.recipe import Recipe
from data_pipeline.sampling import Kind
from data_pipeline.standardize import standardization

MOST_THREADS = 4
"""Threads that a loader takes unless told otherwise, where there are so many cores."""


class Loader:
    """Batches of a data set, epoch after epoch: each `for` goes on to the end of an epoch.

    A batch is a dict of tensors `(B, ...)` by column name. On a CPU they lie in buffers that are
    used again: valid until the next batch, so `clone()` what is to be kept.

    What a loader gives depends on the data set, the seed and the position alone: not on threads,
    depth, or on how often it was stopped. Of W workers, each gets its share of every batch.
    `state_dict()` is three whole numbers; a loader that takes them goes on at the very sample.

    Attributes:
        epoch: The epoch that the next batch belongs to, from 0.
        position: The position in it of the next batch's first sample.
    """

    epoch: int
    position: int

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        columns: Sequence[str] | None = None,
        inputs: str | None = None,
        target: str | None = None,
        sampling: Kind = "shuffled",
        seed: int = 0,
        transforms: Sequence[Transform] = (),
        standardize: bool = True,
        last_batch: Literal["keep", "drop"] = "keep",
        micro_batch: int | None = None,
        pad_to: Mapping[str, int] | None = None,
        rank: int = 0,
        world_size: int = 1,
        threads: int | None = None,
        depth: int = 2,
        device: torch.device | str = "cpu",
    ) -> None:
        """Describes the batches; nothing is read before the first is asked for.

        Args:
            dataset: What to read.
            batch_size: Samples of a batch of all workers together.
            columns: Those wanted; all, unless given.
            inputs: The column that is transformed and scaled: the first tensor, picture or
                sequence, unless given.
            target: The column to be learned, for transforms that change it and for "balanced"
                sampling: the first label or else number, unless given.
            sampling: "shuffled", "stored", "with_replacement", "bootstrap" or "balanced".
            seed: Of order and transforms.
            transforms: Run on the inputs in turn.
            standardize: Scale inputs of bytes and floats to mean 0 and deviation 1 by the training
                part; without it bytes become float32 with their values.
            last_batch: Keep an epoch's last batch, though it may be short, or drop a short one.
            micro_batch: Batches are shared out to workers in runs of so many samples, and a
                transform is given one run at a time; None shares single samples out, and gives a
                transform all of a worker's. With several workers, transforms that look beyond a
                sample (mixup, functions of yours) need it.
            pad_to: By sequence or text, the length to pad to.
            rank: This worker, of `world_size`.
            world_size: Workers that share each batch.
            threads: Threads that prepare batches; as many as there are cores, at most 4, unless
                given.
            depth: Batches that are prepared ahead.
            device: Where the tensors are to be.

        Raises:
            ValueError: an argument is out of its range.
            DataError: the data set has no such column, or can't be made into batches.
        """
        _check_numbers(batch_size=batch_size, seed=seed)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be 1 or more")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}; it must lie in [0, world_size = {world_size})")
        if depth < 1 or (threads is not None and threads < 1):
            raise ValueError(f"depth is {depth} and threads is {threads}; both must be 1 or more")
        if last_batch not in ("keep", "drop"):
            raise ValueError(f'last_batch is {last_batch!r}; it can be "keep" or "drop"')
        if last_batch == "drop" and dataset.num_rows < batch_size:
            raise ValueError(
                f"{dataset.name} has {dataset.num_rows} rows, fewer than a batch of {batch_size}: "
                'lower batch_size, or let last_batch be "keep"'
            )
        _check_transforms(transforms, world_size if micro_batch is None else 1)
        names = tuple(dataset.columns) if columns is None else tuple(columns)
        for name in filter(None, (inputs, target)):
            dataset.column(name)
        kinds = {name: dataset.column(name).kind for name in names}
        inputs = inputs or _first(kinds, "tensor", "image", "sequence")
        target = target or _first(kinds, "label", "number")
        scaling = None if inputs is None else standardization(dataset, inputs, scaled=standardize)
        self._dataset, self._batch_size = dataset, batch_size
        self._rank, self._size = rank, world_size
        self._unit, self._device = micro_batch or 1, torch.device(device)
        self._recipe = Recipe(
            columns=names,
            seed=seed,
            sampling=sampling,
            inputs=inputs,
            target=target,
            transforms=tuple(transforms),
            standardized={} if inputs is None or scaling is None else {inputs: scaling},
            micro_batch=micro_batch,
            pad_to=pad_to or {},
        )
        self._recipe.sampled(dataset)
        self._recipe = self._recipe.fitted(dataset)
        self._threads, self._depth = threads or _default_threads(), depth
        whole = dataset.num_rows // batch_size * batch_size
        self._last = whole if last_batch == "drop" else dataset.num_rows
        self.epoch = self.position = 0
        self._open: OnDevice | None = None
        self._ends: weakref.finalize[[], Loader] = weakref.finalize(self, _nothing)
        self._pid, self._starting, self._loop = os.getpid(), threading.Lock(), object()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return (self._last + self._batch_size - 1) // self._batch_size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """The rest of the epoch; the next `for` has the next one.

        The threads go on with the next epoch while its loop is not there yet. They end with
        `close`, with the loader itself, and where a loop is left by `break` or an exception.

        Raises:
            RuntimeError: another loop over it was begun, or it was closed.
        """
        loop = object()
        with self._starting:
            if os.getpid() != self._pid:  # a fork has neither the threads nor a use for the buffers
                self._ends.detach()
                self._open, self._pid = None, os.getpid()
            if self._open is None:
                self._open = self._opened()
                # The threads hold the buffers and not the loader: they end with it, or at exit.
                self._ends = weakref.finalize(self, self._open.close)
            batches = self._open
            self._loop, epoch = loop, self.epoch
        try:
            while self.epoch == epoch:
                if self._loop is not loop or self._open is not batches:
                    raise RuntimeError(
                        f"another loop over this loader was begun, or it was closed, at position "
                        f"{self.position} of epoch {self.epoch}: let one loop at a time go over it"
                    )
                batch = next(batches)
                following = self.position + self._batch_size
                ends = following >= self._last
                self.epoch, self.position = (epoch + 1, 0) if ends else (epoch, following)
                yield batch.columns
        except BaseException:
            if self._loop is loop:
                self.close()
            raise

    def _opened(self) -> OnDevice:
        prefetcher = Prefetcher(
            self._dataset,
            self._recipe,
            self._spans(self.epoch, self.position),
            max_rows=self._most_rows(),
            depth=self._depth,
            threads=self._threads,
            pin_memory=self._device.type == "cuda",
        )
        return OnDevice(prefetcher, self._device)

    def close(self) -> None:
        """Ends the threads and lets the buffers go; another `for` begins anew where it stands."""
        if self._open is not None:
            self._ends()
            self._open = None

    def __enter__(self) -> Self:
        """For `with`: it is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def _spans(self, epoch: int, position: int) -> Iterator[Span]:
        """This worker's spans from a position on, without end; they hold no loader."""
        parts = partial(
            _share,
            last=self._last,
            batch=self._batch_size,
            unit=self._unit,
            rank=self._rank,
            size=self._size,
        )
        return _spans(parts, range(0, self._last, self._batch_size), epoch, position)

    def _most_rows(self) -> int:
        units = -(-self._batch_size // self._unit)
        return min(-(-units // self._size) * self._unit, self._dataset.num_rows)

    def state_dict(self) -> dict[str, int]:
        """Where it stands, and the seed that this is a place in the order of."""
        return {"seed": self._recipe.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes on there: the next `for` begins at that position.

        Raises:
            ValueError: the state is of another seed, or no batch begins there.
        """
        names = ("seed", "epoch", "position")
        seed, epoch, position = (operator.index(state[name]) for name in names)
        if seed != self._recipe.seed:
            raise ValueError(f"the state is of seed {seed}, the loader's is {self._recipe.seed}")
        if epoch < 0 or not 0 <= position < self._last or position % self._batch_size:
            raise ValueError(
                f"no batch of {self._batch_size} begins at position {position} of epoch {epoch}: "
                f"an epoch has the positions [0, {self._last})"
            )
        self.close()
        self.epoch, self.position = epoch, position


def _nothing() -> None:
    """What ends with a loader that has begun nothing."""


def _check_numbers(**given: object) -> None:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} is {value!r}; it must be a whole number")


def _check_transforms(transforms: Sequence[Transform], world_size: int) -> None:
    """Refuses what is no transform, and what would see others in a share of another size."""
    for one in transforms:
        if isinstance(one, type) or not callable(one):
            raise ValueError(f"{one!r} is no transform: give an object of one, such as Flip()")
        if world_size > 1 and not isinstance(one, InputTransform):
            raise ValueError(
                f"{getattr(one, '__name__', type(one).__name__)} may look at all samples that it "
                f"is given, and those would depend on world_size ({world_size}): give micro_batch, "
                "which says how many there are"
            )


def _spans(
    share: Callable[[int, int], Span], starts: range, epoch: int, position: int
) -> Iterator[Span]:
    """The shares of all batches from a position on, epoch after epoch."""
    for number in count(epoch):
        for start in starts[position // starts.step if number == epoch else 0 :]:
            yield share(number, start)


def _share(
    epoch: int, start: int, *, last: int, batch: int, unit: int, rank: int, size: int
) -> Span:
    """A worker's positions of the batch that begins at `start`: consecutive whole units."""
    num_samples = min(batch, last - start)
    units = -(-num_samples // unit)
    cuts = [units * worker // size * unit for worker in (rank, rank + 1)]
    return Span(epoch, *(start + min(cut, num_samples) for cut in cuts))


def _first(kinds: Mapping[str, str], *wanted: str) -> str | None:
    """The first column of the first kind that there is, of those wanted."""
    found = [name for kind in wanted for name in kinds if kinds[name] == kind]
    return found[0] if found else None


def _default_threads() -> int:
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0))))
