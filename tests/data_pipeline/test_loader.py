"""`for batch in loader`: the same samples with the same bits, however many share them."""

import gc
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipeline import DataError, Dataset, Loader, write_dataset
from data_pipeline.augment import Draw, Flip, Mixup, Samples, Shift
from data_pipeline.manifest import Column
from data_pipeline.order import ShuffledOrder
from tests.conftest import TIMEOUT_S, clean_environment

NUM_ROWS, BATCH = 23, 4
GENERATOR = np.random.default_rng(0)
ARRAYS: dict[str, NDArray[Any]] = {
    "image": GENERATOR.integers(0, 256, (NUM_ROWS, 2, 5, 4), dtype=np.uint8),
    "label": np.arange(NUM_ROWS) % 3,
    "row": np.arange(NUM_ROWS),
}
DATASET = Dataset.from_arrays(ARRAYS, classes={"label": "abc"})
PROMPTLY_S, BUSY_S = 5.0, 25.0
"""What is promised, and what a busy machine may add to it: Python alone ends in half a second."""

LAST = Literal["keep", "drop"]

Batch = dict[str, NDArray[Any]]
"""A copy that may be kept."""


def loader(**options: Any) -> Loader:
    """Of the small data set; Mixup where the micro-batch says who is mixed with whom."""
    mixing = [Mixup(0.5)] if options.get("micro_batch") else []
    given: dict[str, Any] = {"seed": 7, "transforms": [Shift(1), Flip(), *mixing], **options}
    return Loader(DATASET, BATCH, **given)


def epoch_of(loader: Loader) -> list[Batch]:
    return [{name: t.numpy().copy() for name, t in batch.items()} for batch in loader]


def of_workers(world_size: int, **options: Any) -> list[Batch]:
    """Two epochs; each batch is what the workers have of it, one behind the other."""
    workers = [loader(rank=r, world_size=world_size, **options) for r in range(world_size)]
    shares = [epoch_of(worker) + epoch_of(worker) for worker in workers]
    return [
        {name: np.concatenate([share[name] for share in batch]) for name in batch[0]}
        for batch in zip(*shares, strict=True)
    ]


def bits(batches: list[Batch]) -> list[dict[str, tuple[str, tuple[int, ...], bytes]]]:
    return [
        {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in batch.items()}
        for batch in batches
    ]


def rows_of(batches: list[Batch]) -> list[int]:
    return list(chain.from_iterable(batch["row"].tolist() for batch in batches))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "distrain-loader"]


def left_by(batches: Loader, error: type[BaseException]) -> None:
    for _ in batches:
        raise error


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def no_thread_outlives_its_loader() -> Iterator[None]:
    yield
    gc.collect()
    assert loader_threads() == []


@pytest.mark.parametrize("last_batch", ["keep", "drop"])
@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_the_union_of_any_number_of_workers_is_the_same_sequence_with_the_same_bits(
    world_size: int, micro_batch: int | None, last_batch: LAST
) -> None:
    options: dict[str, Any] = {"micro_batch": micro_batch, "last_batch": last_batch}
    alone = of_workers(1, depth=1, threads=1, **options)
    together = of_workers(world_size, threads=2, **options)
    assert bits(together) == bits(alone)
    full = NUM_ROWS // BATCH
    sizes = [BATCH] * full + [NUM_ROWS % BATCH] * (last_batch == "keep")
    assert [len(batch["row"]) for batch in together] == sizes * 2
    for epoch in (0, 1):
        expected = ShuffledOrder(NUM_ROWS, 7, epoch).rows(0, sum(sizes)).tolist()
        first = epoch * len(sizes)
        assert rows_of(together[first : first + len(sizes)]) == expected
        assert len(set(expected)) == len(expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_neither_depth_nor_threads_are_seen_in_the_bits(depth: int, threads: int) -> None:
    for micro_batch in (None, 2):
        expected = bits(of_workers(1, depth=1, threads=1, micro_batch=micro_batch))
        for world_size in (1, 2, 5):
            found = of_workers(world_size, depth=depth, threads=threads, micro_batch=micro_batch)
            assert bits(found) == expected


@pytest.mark.parametrize("last_batch", ["keep", "drop"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
def test_a_stop_and_resume_at_any_position_goes_on_with_the_very_bits(
    world_size: int, last_batch: LAST
) -> None:
    options: dict[str, Any] = {"micro_batch": 2, "last_batch": last_batch}
    whole = of_workers(1, depth=1, threads=1, **options)
    per_epoch = len(loader(last_batch=last_batch))
    assert len(whole) == 2 * per_epoch
    for rank, taken in product(range(world_size), range(2 * per_epoch)):
        stopped = loader(rank=rank, world_size=world_size, **options)
        for _ in range(taken // per_epoch):
            epoch_of(stopped)
        for _ in zip(range(taken % per_epoch), stopped, strict=False):
            pass
        state = json.loads(json.dumps(stopped.state_dict()))
        assert all(type(value) is int for value in state.values())
        # Another number of workers may go on where these have stopped.
        resumed = loader(depth=1 + taken % 4, threads=1 + taken % 3, **options)
        resumed.load_state_dict(state)
        rest = epoch_of(resumed)
        if taken < per_epoch:
            rest += epoch_of(resumed)
        assert bits(rest) == bits(whole[taken:])


def test_every_loop_is_an_epoch_and_the_place_is_that_of_the_next_batch() -> None:
    batches = loader()
    assert len(batches) == 6
    assert (batches.epoch, batches.position) == (0, 0)
    places = [(batches.epoch, batches.position) for _ in batches]
    assert places == [(0, 4), (0, 8), (0, 12), (0, 16), (0, 20), (1, 0)]
    assert batches.state_dict() == {"seed": 7, "epoch": 1, "position": 0}
    assert len(epoch_of(batches)) == 6
    assert batches.epoch == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"seed": 8, "epoch": 0, "position": 0}, "of seed 8, the loader's is 7"),
        ({"seed": 7, "epoch": 0, "position": 3}, "no batch of 4 begins at position 3"),
        ({"seed": 7, "epoch": 0, "position": 24}, r"has the positions \[0, 23\)"),
        ({"seed": 7, "epoch": 0, "position": -4}, "begins at position -4"),
        ({"seed": 7, "epoch": -1, "position": 0}, "of epoch -1"),
    ],
)
def test_a_state_that_is_no_place_of_this_loader_is_refused(
    state: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        loader().load_state_dict(state)


def test_resuming_in_the_middle_of_a_huge_data_set_is_immediate() -> None:
    dataset = Dataset.from_arrays({"x": np.zeros(3_000_000, np.float32)})
    batches = Loader(dataset, 10, threads=1)
    batches.load_state_dict({"seed": 0, "epoch": 10**6, "position": 2_999_990})
    begun = time.process_time()
    assert len(next(iter(batches))["x"]) == 10
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("sampling", ["stored", "bootstrap", "balanced"])
def test_any_sampling_is_shared_out_in_the_same_way(sampling: str) -> None:
    found = [bits(of_workers(w, sampling=sampling, micro_batch=2)) for w in (1, 2, 3)]
    assert found[0] == found[1] == found[2]


def test_the_first_input_and_label_are_found_and_scaled_unless_one_says_otherwise() -> None:
    (batch,) = epoch_of(Loader(DATASET, NUM_ROWS, sampling="stored"))
    assert list(batch) == ["image", "label", "row"]
    mean, std = (f(ARRAYS["image"], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    np.testing.assert_allclose(batch["image"], (ARRAYS["image"] - mean) / std, rtol=1e-5, atol=1e-6)
    (plain,) = epoch_of(Loader(DATASET, NUM_ROWS, sampling="stored", standardize=False))
    assert plain["image"].dtype == np.float32
    assert np.array_equal(plain["image"], ARRAYS["image"])
    (chosen,) = epoch_of(Loader(DATASET, NUM_ROWS, sampling="stored", columns=["row"]))
    assert list(chosen) == ["row"]
    assert chosen["row"].dtype == np.int64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"rank": 2, "world_size": 2}, r"rank is 2; it must lie in \[0, world_size = 2\)"),
        ({"last_batch": "short"}, 'last_batch is \'short\'; it can be "keep" or "drop"'),
        ({"batch_size": 24, "last_batch": "drop"}, "has 23 rows, fewer than a batch of 24: lower"),
        ({"micro_batch": 0}, "micro_batch is 0; it must be 1 or more"),
        ({"depth": 0}, "depth is 0 and threads is None; both must be 1 or more"),
        ({"threads": 0}, "depth is 2 and threads is 0; both must be 1 or more"),
    ],
)
def test_arguments_out_of_their_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(DATASET, **{"batch_size": 4, **options})


def test_a_column_that_is_not_there_and_labels_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="has no column 'picture'"):
        Loader(DATASET, 4, columns=["picture"])
    with pytest.raises(DataError, match="'row' of arrays is none"):
        Loader(DATASET, 4, sampling="balanced", target="row")


class Failing:
    """A transform that fails at one row, in a thread of a loader."""

    def __call__(self, samples: Samples, draw: Draw) -> None:  # noqa: ARG002
        if threading.current_thread().name == "distrain-loader" and 11 in samples.arrays["row"]:
            raise ZeroDivisionError("row 11")


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_a_transform_is_raised_in_its_batch_and_the_place_is_kept(
    threads: int,
) -> None:
    batches = Loader(DATASET, 4, sampling="stored", transforms=[Failing()], threads=threads)
    taken: list[list[int]] = []
    with pytest.raises(ZeroDivisionError, match="row 11"):
        taken.extend(batch["row"].tolist() for batch in batches)
    assert taken == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert batches.position == 8
    assert loader_threads() == []


def test_leaving_the_loop_in_any_way_ends_the_threads_and_leaves_no_file(tmp_path: Path) -> None:
    columns = [Column(name="x", kind="number", dtype="float32")]
    rows = np.arange(100, dtype=np.float32)
    write_dataset(tmp_path / "d", "d", columns, {"train": {"x": rows}}, rows_per_shard=9)
    before = open_files()
    dataset = Dataset(tmp_path / "d")
    opened = open_files()
    batches = Loader(dataset, 10, threads=3, depth=2)
    iter(batches)  # not gone through
    assert loader_threads() == []
    for _ in batches:
        assert 0 < len(loader_threads()) <= 3
        break
    assert loader_threads() == []
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            left_by(batches, error)
        assert loader_threads() == []
    assert len(list(batches)) == 6
    batches.close()
    assert loader_threads() == []
    batches.close()
    assert open_files() == opened
    del dataset, batches
    gc.collect()
    assert open_files() == before


def test_threads_go_on_between_the_loops_and_end_with_the_block_or_the_loader() -> None:
    with loader(threads=2) as batches:
        epoch_of(batches)
        between = loader_threads()
        assert len(between) == 2
        epoch_of(batches)
        assert loader_threads() == between
    assert loader_threads() == []
    assert len(epoch_of(batches)) == 6  # it can be gone through again
    del batches
    gc.collect()
    assert loader_threads() == []


def test_going_elsewhere_between_two_loops_gives_the_batches_of_that_place() -> None:
    whole = of_workers(1)
    with loader(depth=4) as batches:
        epoch_of(batches)
        batches.load_state_dict({"seed": 7, "epoch": 0, "position": 12})
        assert bits(epoch_of(batches)) == bits(whole[3:6])
        assert bits(epoch_of(batches)) == bits(whole[6:])


UNCLOSED = """
import numpy as np
from data_pipeline import Dataset, Loader
loader = Loader(Dataset.from_arrays({"x": np.zeros((5000, 99))}), 10, threads=3, depth=4)
for batch in loader:
    pass
running = iter(loader)
next(running)
print(loader.state_dict())
"""


def test_a_program_that_closes_nothing_ends_all_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNCLOSED],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    said = "{'seed': 0, 'epoch': 1, 'position': 10}\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


ENDLESS = """
import time
import numpy as np
from data_pipeline import Dataset, Loader
from data_pipeline.augment import Flip
data = Dataset.from_arrays({"image": np.zeros((5000, 3, 16, 16), np.uint8)})
loader = Loader(data, 10, threads=3, transforms=[Flip()])
while True:
    for number, batch in enumerate(loader):
        if number == 100:
            print("runs", flush=True)
        time.sleep(0.002)
"""


def test_ctrl_c_ends_a_loop_promptly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, said = process.communicate(timeout=TIMEOUT_S)
    assert time.monotonic() - begun < PROMPTLY_S + BUSY_S
    assert process.returncode == -signal.SIGINT
    assert re.findall(r"^(\w+)(?::.*)?$", said, re.MULTILINE)[-1] == "KeyboardInterrupt"
    assert "in thread" not in said


def test_what_is_handed_out_are_tensors_that_torch_can_take_at_once() -> None:
    for batch in loader(micro_batch=2):
        assert all(isinstance(tensor, torch.Tensor) for tensor in batch.values())
        assert all(tensor.is_contiguous() for tensor in batch.values())
        assert batch["label"].sum(dim=1).allclose(torch.ones(len(batch["label"])))


def test_a_loop_is_told_that_another_was_begun_over_its_loader() -> None:
    loader = Loader(Dataset.from_arrays({"x": np.zeros((12, 2), np.float32)}), 4)
    first, second = iter(loader), iter(loader)
    next(first), next(second)
    with pytest.raises(RuntimeError, match="another loop over this loader was begun"):
        next(first)
    assert next(second)["x"].shape == (4, 2)
