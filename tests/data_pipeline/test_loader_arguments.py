"""What a loader asks of those who call it, and does for them."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import Dataset, Loader, write_dataset
from data_pipeline.augment import Draw, RandomResizedCrop, Rescale, Resize, Samples, ZCAWhitening
from data_pipeline.manifest import Column
from data_pipeline.recipe import training_transforms
from tests.conftest import ROOT


def test_what_may_look_at_other_samples_needs_a_micro_batch_beside_other_workers() -> None:
    data = Dataset.from_arrays({"x": np.zeros((12, 2), np.float32)})

    def mine(samples: Samples, draw: Draw) -> None:
        pass

    with pytest.raises(ValueError, match=r"mine may look at all .* give micro_batch"):
        Loader(data, 4, transforms=[mine], rank=0, world_size=2)
    assert len(Loader(data, 4, transforms=[mine], rank=0, world_size=2, micro_batch=2)) == 3


def test_whitening_is_fitted_to_what_the_loader_gives() -> None:
    rows = np.random.default_rng(0).normal(5.0, 3.0, (400, 4)).astype(np.float32)
    rows[:, 1] += rows[:, 0]
    with Loader(Dataset.from_arrays({"x": rows}), 400, transforms=[ZCAWhitening()]) as loader:
        white = next(iter(loader))["x"].double().numpy()
    assert np.allclose(np.cov(white.T, bias=True), np.eye(4), atol=1e-3)


def test_another_device_gets_the_batch_itself() -> None:
    data = Dataset.from_arrays({"x": np.zeros((4, 2), np.float32)})
    with Loader(data, 4, device="meta") as loader:
        assert next(iter(loader))["x"].device.type == "meta"


def test_a_crop_for_training_takes_the_place_of_the_one_for_all_and_the_rest_stays() -> None:
    crop, size, rescale = RandomResizedCrop(8, 8), Resize(8, 8), Rescale(2.0)
    assert training_transforms([size, rescale], [crop]) == (crop, rescale)
    assert training_transforms([rescale], [crop]) == (rescale, crop)
    assert training_transforms([size], [rescale]) == (size, rescale)


FORKS = """
import faulthandler, os, signal
import numpy as np
from data_pipeline import Dataset, Loader

data = Dataset.from_arrays({"x": np.arange(20, dtype=np.float32)})
for _ in range(20):  # at whatever the threads do then
    with Loader(data, 4, standardize=False) as loader:
        assert len(list(loader)) == 5
        child = os.fork()
        if child == 0:
            faulthandler.dump_traceback_later(30)
            signal.alarm(60)
            os._exit(len(list(loader)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_begins_where_the_loader_stood_with_threads_of_its_own() -> None:
    # A program of its own: a fork of pytest's process may hold a lock of another thread's.
    done = subprocess.run(
        [sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("5\n" * 20, 0), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "4"}, "batch_size is '4'; it must be a whole number"),
        ({"batch_size": True}, "batch_size is True; it must be a whole number"),
        ({"batch_size": 4, "seed": "a"}, "seed is 'a'; it must be a whole number"),
        ({"batch_size": 4, "transforms": [Resize]}, "is no transform: give an object of one"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(Dataset.from_arrays({"x": np.zeros(20)}), **arguments)


def test_a_transform_that_gives_something_back_is_told_that_nothing_looks_at_it() -> None:
    def doubled(samples: Samples, _: Draw) -> Any:
        return samples.arrays["x"] * 2

    transforms: list[Any] = [doubled]
    loader = Loader(Dataset.from_arrays({"x": np.zeros((20, 2))}), 4, transforms=transforms)
    with pytest.raises(ValueError, match="doubled gave back ndarray, which nothing looks at"):
        next(iter(loader))


def test_a_data_set_is_opened_anew_where_it_is_sent(tmp_path: Path) -> None:
    column = Column(name="x", kind="number", dtype="float32")
    rows = {"x": np.arange(9, dtype=np.float32)}
    write_dataset(tmp_path / "d", "d", [column], {"train": rows, "test": rows})
    for data in (Dataset(tmp_path / "d", "test"), Dataset.from_arrays(rows)):
        sent = pickle.loads(pickle.dumps(data))
        out = np.empty(2, np.float32)
        sent.gather("x", np.array([8, 3]), out)
        assert (sent.part, out.tolist()) == (data.part, [8.0, 3.0])


def test_a_program_that_leaves_its_loader_open_ends_without_a_word() -> None:
    program = (
        "import numpy as np\n"
        "from data_pipeline import Dataset, Loader\n"
        "loader = Loader(Dataset.from_arrays({'x': np.zeros((20, 2))}), 4)\n"
        "print(sum(1 for _ in loader))\n"
        "loop = iter(loader)\n"
        "next(loop)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert (done.stdout, done.stderr) == ("5\n", "")
