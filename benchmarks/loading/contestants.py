"""Who takes part: what each needs, where it is, and the workers or threads that suit it best."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

from benchmarks.loading.task import Contestant


@dataclass(frozen=True)
class Entry:
    """A contestant, whose module is imported only by the process that measures it.

    Attributes:
        module: In `benchmarks.loading`; has a function of the contestant's name.
        threads: By task, the workers or threads, or 0 for none, that were found to be fastest on
            2 cores; what is not named, it doesn't do.
        needs: The packages, as they are imported, by the name under which they are installed.
        complete: Whether it promises that each sample comes exactly once an epoch.
    """

    module: str
    threads: Mapping[str, int]
    needs: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True

    def missing(self) -> list[str]:
        """What would have to be installed, or written."""
        lacking = [name for found, name in self.needs.items() if not _is_there(found)]
        room = f"benchmarks.loading.{self.module}"
        return lacking if _is_there(room) else [room, *lacking]


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


OURS = "distrain"
CV2 = {"cv2": "opencv-python-headless"}
SIMPLEJPEG = {"simplejpeg": "simplejpeg", **CV2}

CONTESTANTS: Mapping[str, Entry] = {
    OURS: Entry("ours", {"A1": 2, "A2": 2, "B": 2}),
    "in_ram": Entry("torch_peers", {"A1": 2, "A2": 2}),
    "loader_batches": Entry("torch_peers", {"A1": 0, "A2": 0}),
    "loader_collate": Entry("torch_peers", {"A1": 0, "A2": 0}),
    "loader_samples": Entry("torch_peers", {"A1": 0, "A2": 0}),
    "loader_cv2": Entry("torch_peers", {"B": 2}, CV2),
    "loader_simplejpeg": Entry("torch_peers", {"B": 2}, SIMPLEJPEG),
    "loader_pillow": Entry("torch_peers", {"B": 2}),
    "ffcv": Entry("ffcv_peer", {"A1": 1, "A2": 2, "B": 2}, {"ffcv": "ffcv", **CV2}),
    "ffcv_arrays": Entry("ffcv_peer", {"A1": 1}, {"ffcv": "ffcv", **CV2}),
    "hugging_face": Entry(
        "hugging_face_peer", {"A1": 0, "A2": 0, "B": 2}, {"datasets": "datasets", **SIMPLEJPEG}
    ),
    "spdl": Entry("spdl_peer", {"A1": 2, "A2": 2, "B": 3}, {"spdl": "spdl", **SIMPLEJPEG}),
    "grain": Entry(
        "grain_peer",
        {"A1": 0, "A2": 2, "B": 4},
        {"grain": "grain", "array_record": "array-record", **SIMPLEJPEG},
    ),
    "streaming": Entry(
        "streaming_peer",
        {"A1": 2, "A2": 2, "B": 2},
        {"streaming": "mosaicml-streaming", **SIMPLEJPEG},
        complete=False,
    ),
    "webdataset": Entry(
        "webdataset_peer", {"A1": 2, "A2": 2, "B": 2}, {"webdataset": "webdataset", **SIMPLEJPEG}
    ),
    "litdata": Entry(
        "litdata_peer", {"A1": 1, "A2": 1, "B": 2}, {"litdata": "litdata", **SIMPLEJPEG}
    ),
}


def load(name: str) -> Contestant:
    """Imports the contestant."""
    room = import_module(f"benchmarks.loading.{CONTESTANTS[name].module}")
    found: Contestant = getattr(room, name)
    return found
