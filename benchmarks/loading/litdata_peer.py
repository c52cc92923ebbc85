"""LitData: optimized chunks, shuffled, by its own DataLoader.

Standardised, moved and flipped is by batch, in the training process, so that workers send bytes.
"""

from pathlib import Path
from typing import Any

from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming.writer import BinaryWriter

from benchmarks.loading.task import Epochs, Task, make_once
from benchmarks.loading.torch_peers import forever, worker_options
from benchmarks.loading.transforms import finisher, stack, unpacker


def _write(task: Task, folder: Path) -> None:
    """Bytes as they are: its writer is what `litdata.optimize` uses, in processes of its own."""
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for row in range(task.rows):
        writer.add_item(row, {"image": task.packed(row), "label": row})
    writer.done()
    writer.merge()


class _Samples(StreamingDataset):  # type: ignore[misc] # mypy doesn't look into LitData
    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__(str(folder), shuffle=True)
        self.unpack = unpacker(task)

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        sample = super().__getitem__(index)
        return self.unpack(sample["image"]), sample["label"]


def litdata(task: Task, folder: Path, threads: int) -> Epochs:
    made = make_once(folder, lambda new: _write(task, new))
    loader = StreamingDataLoader(
        _Samples(task, made), batch_size=task.batch, collate_fn=stack, **worker_options(threads)
    )
    yield from forever(loader, finisher(task))
