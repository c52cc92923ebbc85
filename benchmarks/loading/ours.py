"""distrain: the data set's own shards, memory-mapped, and its loader.

Of pictures the shards hold the JPEGs as they are, as `distrain data convert` keeps them.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.loading.task import AREA, RATIO, REACH, Batch, Epochs, Task, make_once
from data_pipeline import Dataset, Loader, augment, write_dataset
from data_pipeline.manifest import Column
from data_pipeline.ragged import Ragged

_LABEL = Column(name="label", kind="number", dtype="int64")


def _write(task: Task, folder: Path) -> None:
    if task.encoded:
        files = [task.jpeg(row).read_bytes() for row in range(task.rows)]
        picture = Column(name="image", kind="image", dtype="uint8", shape=(3,))
        images: Ragged | np.ndarray = Ragged.of_bytes(files)
    else:
        picture = Column(name="image", kind="tensor", dtype="uint8", shape=(3, 32, 32))
        images = task.images(mapped=True)
    rows = {"image": images, "label": task.labels()}
    write_dataset(folder / "set", "benchmark", (picture, _LABEL), {"train": rows})


def distrain(task: Task, cache: Path, threads: int) -> Epochs:
    folder = make_once(cache / "distrain", lambda unfinished: _write(task, unfinished))
    transforms: list[augment.Transform] = []
    if task.moves:
        transforms = [augment.Shift(REACH), augment.Flip()]
    if task.encoded:
        side = task.side
        transforms = [augment.RandomResizedCrop(side, side, AREA, RATIO), augment.Flip()]
    loader = Loader(
        Dataset(folder / "set"),
        task.batch,
        inputs="image",
        transforms=transforms,
        threads=max(threads, 1),
        depth=4,
    )

    def epoch() -> Iterator[Batch]:
        for batch in loader:
            yield batch["image"], batch["label"]

    while True:
        yield epoch()
