"""What bits rest on beside a run's identity: kept with the run, and said where it changes."""

import json
import threading
from pathlib import Path
from typing import Any

import numba
import pytest
import torch

from distrain.coordinator import environment
from distrain.coordinator.environment import (
    changes,
    environment_of,
    numerics_fingerprint,
    unlike_workers,
)
from distrain.numerics import fix_kernels
from distrain.parallel.communicator import Alone
from distrain.parallel.world import World
from tests.alone import distrain_alone
from tests.conftest import Completed
from tests.run_folders import named
from tests.started import JOB
from tests.thread_workers import outcomes

ALONE = World(Alone(), torch.device("cpu"))


def test_the_fingerprint_says_what_the_bits_rest_on() -> None:
    found = numerics_fingerprint(torch.device("cpu"), 1)
    assert found["torch"] == torch.__version__
    assert found["compute_threads"] == 1
    assert found["device"] == "cpu"
    assert {"cpu", "cpu_capability", "machine", "numpy", "python", "libc"} <= set(found)
    assert found["numba"] == numba.__version__
    assert found["float32_matmul_precision"] == "highest"
    assert {"simplejpeg", "pillow"} <= set(found)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_fingerprint_has_the_kernels_that_are_set(deterministic: bool) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    fix_kernels(1, deterministic=deterministic)
    try:
        assert numerics_fingerprint(torch.device("cpu"), 1)["deterministic"] is deterministic
    finally:
        fix_kernels(1, deterministic=before)


def test_a_gpu_is_known_by_its_name_and_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    found = numerics_fingerprint(torch.device("cuda", 0), 1)
    assert (found["device"], found["gpu"]) == ("cuda", "NVIDIA H200")
    assert {"cuda", "cudnn"} <= set(found)


def test_only_what_bits_may_depend_on_is_a_change() -> None:
    before = {"torch": "2.12", "gpu": "A100", "cpu": "EPYC", "world_size": 2}
    now = {"torch": "2.13", "cpu": "EPYC", "numba": "0.61", "world_size": 4}
    assert changes(before, now) == {
        "torch": ("2.12", "2.13"),
        "gpu": ("A100", None),
        "numba": (None, "0.61"),
    }


def test_workers_on_unlike_hardware_are_told_apart() -> None:
    one = {"device": "cuda", "gpu": "A100"}
    assert unlike_workers([one, one]) == []
    assert unlike_workers([one, one, {**one, "gpu": "H200"}]) == [
        "rank 2 computes on something else than rank 0, so bits depend on who computes what: "
        "gpu A100 -> H200"
    ]


def test_all_workers_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = threading.local()
    monkeypatch.setattr(
        environment, "numerics_fingerprint", lambda *_: {"compute_threads": mine.threads}
    )

    def work(world: World) -> Any:
        mine.threads = 4 if world.rank == 2 else 1
        return environment_of(world, {})

    for found, notes in outcomes(3, work):  # type: ignore[misc]
        assert found["world_size"] == 3
        ((event, text),) = notes
        assert event == "unlike_workers"
        assert text.startswith("rank 2 computes on something else than rank 0")
        assert text.endswith(": compute_threads 1 -> 4")


def test_nothing_is_said_of_a_run_that_begins_or_goes_on_where_it_was() -> None:
    now, notes = environment_of(ALONE, {})
    assert notes == []
    assert environment_of(ALONE, now)[1] == []


def test_another_number_of_workers_is_told_and_is_no_other_environment() -> None:
    now, _ = environment_of(ALONE, {})
    told = environment_of(ALONE, {**now, "world_size": 7})[1]
    assert told == [("workers", "the number of workers is 1 now, was 7")]


def test_a_run_that_goes_on_elsewhere_says_once_what_has_changed(
    digits: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"

    def start() -> Completed:
        paths = ("--data.path", digits, "--run.dir", folder, "--checkpoint.every-steps", 3)
        return distrain_alone("train", JOB, *paths, "--training.epochs", 1)

    assert start().returncode == 0
    told = json.loads((folder / "environment.json").read_text())
    told |= {"torch": "2.1.0", "cpu_capability": "AVX9", "world_size": 64}
    (folder / "environment.json").write_text(json.dumps(told))
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    second = start()
    assert second.returncode == 0, second.stderr
    (note,) = named(folder, "environment")
    assert note["text"] == (
        "this run began in another environment, so its bits may differ from those of a run in "
        f"one: cpu_capability AVX9 -> {torch.backends.cpu.get_cpu_capability()}, "
        f"torch 2.1.0 -> {torch.__version__}"
    )
    assert second.stdout.count(note["text"]) == 1
    (folder / "status.json").write_text(json.dumps({**status, "state": "stopped"}))
    assert start().returncode == 0
    assert len(named(folder, "environment")) == 1, "the run has been here before"
