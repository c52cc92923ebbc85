"""Memory stays flat, however much is read and however often."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import Dataset, write_dataset
from data_pipeline.manifest import Column
from data_pipeline.resident import ResidentLimit, file_bytes
from tests.conftest import TIMEOUT_S, clean_environment

MIB = 2**20
LIMIT = 16 * MIB
ROW = 4096
NUM_ROWS = 96 * MIB // ROW


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """96 MiB of pictures in 12 shards; taken away again, as all of it may lie in memory."""
    folder = tmp_path_factory.mktemp("large") / "pictures"
    rows = np.zeros((NUM_ROWS, 1, 64, 64), np.uint8)
    rows[:, 0, 0, 0] = np.arange(NUM_ROWS) % 251
    columns = [Column(name="x", kind="tensor", dtype="uint8", shape=(1, 64, 64))]
    write_dataset(folder, "large", columns, {"train": {"x": rows}}, rows_per_shard=2048)
    del rows
    yield folder
    for shard in folder.rglob("*.arrow"):
        shard.unlink()


def read_twice(dataset: Dataset, resident: ResidentLimit | None) -> int:
    """The most file pages that were held, beyond those at the start, in bytes."""
    rows = np.random.default_rng(0).permutation(NUM_ROWS)
    out = np.empty((16, 1, 64, 64), np.uint8)
    dataset.gather("x", rows[:16], out)  # libraries that this takes are loaded by now
    before, most = file_bytes(), 0
    for start in range(0, 2 * NUM_ROWS, 16):
        some = rows[np.arange(start, start + 16) % NUM_ROWS]
        dataset.gather("x", some, out)
        assert np.array_equal(out[:, 0, 0, 0], some % 251)
        if resident is not None:
            resident.note(16)
        most = max(most, file_bytes() - before)
    return most


def test_pages_are_given_back_beyond_the_limit_and_read_again_with_the_same_values(
    large: Path,
) -> None:
    dataset = Dataset(large)
    # A quarter of the limit is read between two looks, and 16 rows, with what lies round them.
    assert read_twice(dataset, ResidentLimit(dataset, LIMIT)) < 2 * LIMIT


def test_what_an_earlier_reader_left_does_not_raise_the_limit(large: Path) -> None:
    dataset = Dataset(large)
    read_twice(dataset, None)
    dataset.give_back()
    start = file_bytes()
    for _ in range(4):
        read_twice(dataset, ResidentLimit(dataset, LIMIT))
    assert file_bytes() - start < 2 * LIMIT


def test_a_data_set_within_the_limit_is_let_be(
    large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Dataset(large)
    given_back: list[None] = []
    monkeypatch.setattr(dataset, "give_back", lambda: given_back.append(None))
    resident = ResidentLimit(dataset, 128 * MIB)
    resident.note(10**9)
    assert given_back == []
    ResidentLimit(dataset, 64 * MIB)
    assert given_back == [None]


def test_without_the_limit_all_of_it_is_held(large: Path) -> None:
    assert read_twice(Dataset(large), None) > 0.7 * NUM_ROWS * ROW


FLAT = """
import gc, json, sys, tracemalloc
import numpy as np, psutil
from data_pipeline import Dataset, Loader
from data_pipeline.augment import Flip, Mixup, Shift

rng = np.random.default_rng(0)
data = Dataset.from_arrays(
    {"image": rng.integers(0, 256, (1024, 3, 32, 32), dtype=np.uint8), "y": np.arange(1024) % 7},
    classes={"y": "abcdefg"},
)
loader = Loader(data, 256, rank=int(sys.argv[1]), world_size=3, micro_batch=32, threads=2,
                transforms=[Shift(2), Flip(), Mixup()])
kept, seen = [], []
for epoch in range(20):
    for batch in loader:
        pass
    if sys.argv[2] == "leaking":
        kept.append({name: tensor.clone() for name, tensor in batch.items()})
    if epoch == 2:
        tracemalloc.start()
    if epoch in (4, 19):
        loader.close()
        gc.collect()
        seen.append((psutil.Process().memory_info().rss, tracemalloc.get_traced_memory()[0]))
print(json.dumps([later - sooner for sooner, later in zip(*seen)]))
"""


def grown(*kinds: str) -> list[tuple[int, int]]:
    """What each of the workers, started together, has grown by from epoch 4 to epoch 19."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", FLAT, str(rank), kind],
            env=clean_environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, kind in enumerate(kinds)
    ]
    said = [worker.communicate(timeout=TIMEOUT_S)[0] for worker in workers]
    return [(grew[0], grew[1]) for grew in map(json.loads, said)]


def test_three_workers_stay_flat_over_20_epochs_and_a_leak_would_be_seen() -> None:
    # A batch of a worker is 1 MiB; one an epoch would make 15.
    *flat, leaking = grown("flat", "flat", "leaking")
    assert leaking[0] > 10 * MIB
    (third,) = grown("flat")
    for resident, traced in (*flat, third):
        assert resident < 6 * MIB
        assert traced < MIB // 8
