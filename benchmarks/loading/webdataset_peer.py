"""WebDataset: tar files read in a stream, shuffled within a buffer, by DataLoader's workers.

Standardised, moved and flipped is by batch, in the training process, so that workers send bytes.
"""

from pathlib import Path

import webdataset as wds

from benchmarks.loading.task import Epochs, Task, make_once
from benchmarks.loading.torch_peers import forever, worker_options
from benchmarks.loading.transforms import Images, finisher, stack, unpacker

SHARDS = 8


def _image(task: Task) -> str:
    """What the image of a sample is called."""
    return "image.jpg" if task.encoded else "image.bin"


def _write(task: Task, folder: Path) -> None:
    for shard in range(SHARDS):
        with wds.TarWriter(str(folder / f"{shard:03d}.tar")) as tar:
            for row in range(shard, task.rows, SHARDS):
                image = {_image(task): task.packed(row)}
                tar.write({"__key__": f"{row:06d}", "label.cls": row, **image})


def webdataset(task: Task, folder: Path, threads: int) -> Epochs:
    made = make_once(folder, lambda new: _write(task, new))
    unpack = unpacker(task)

    def take(sample: dict[str, bytes]) -> tuple[Images, int]:
        return unpack(sample[_image(task)]), int(sample["label.cls"])

    urls = [str(path) for path in sorted(made.glob("*.tar"))]
    dataset = (
        wds.WebDataset(urls, shardshuffle=SHARDS, workersplitter=wds.split_by_worker)
        .shuffle(1_000)
        .map(take)
        .batched(task.batch, collation_fn=stack)
    )
    loader = wds.WebLoader(dataset, batch_size=None, **worker_options(threads, ahead=4))
    yield from forever(loader, finisher(task))
