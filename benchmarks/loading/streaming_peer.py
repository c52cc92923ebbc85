"""MosaicML Streaming: MDS shards, shuffled, by DataLoader's workers.

Standardised, moved and flipped is by batch, in the training process, so that workers send bytes.
"""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.utils.data import DataLoader

from benchmarks.loading.task import Epochs, Task, make_once
from benchmarks.loading.torch_peers import forever, worker_options
from benchmarks.loading.transforms import finisher, stack, unpacker


def _stand_in_for_torchvision() -> None:
    """Streaming imports it for data sets that are not used here, and it has no build for CPU."""
    transforms_name = "torchvision.transforms"
    names = (
        "torchvision",
        "torchvision.datasets",
        transforms_name,
        f"{transforms_name}.functional",
    )
    outer, datasets, transforms, functional = (ModuleType(name) for name in names)
    for module in (outer, datasets, transforms, functional):
        module.__spec__ = ModuleSpec(module.__name__, None)  # others look for it there
        sys.modules[module.__name__] = module
    for module, name in (
        (datasets, "VisionDataset"),
        (functional, "to_tensor"),
        (transforms, "ToTensor"),
    ):
        setattr(module, name, object)
    outer.__dict__.update(datasets=datasets, transforms=transforms)
    transforms.__dict__.update(functional=functional)


try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    _stand_in_for_torchvision()
from streaming import MDSWriter, StreamingDataset  # noqa: E402
from streaming.base.util import clean_stale_shared_memory  # noqa: E402


def _write(task: Task, folder: Path) -> None:
    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for row in range(task.rows):
            writer.write({"image": task.packed(row), "label": row})


class _Samples(StreamingDataset):  # type: ignore[misc] # mypy doesn't look into Streaming
    def __init__(self, task: Task, folder: Path) -> None:
        super().__init__(local=str(folder), shuffle=True, batch_size=task.batch)
        self.unpack = unpacker(task)

    def __getitem__(self, index: Any) -> tuple[Any, int]:
        sample = super().__getitem__(index)
        return self.unpack(sample["image"]), sample["label"]


def streaming(task: Task, folder: Path, threads: int) -> Epochs:
    made = make_once(folder, lambda new: _write(task, new))
    clean_stale_shared_memory()
    options = worker_options(threads)
    samples: Any = _Samples(task, made)
    loader: Any = DataLoader(samples, task.batch, collate_fn=stack, **options)
    yield from forever(loader, finisher(task))
