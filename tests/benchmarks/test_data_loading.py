"""The loaders' benchmark runs, tiny, and refuses contestants that do not do their task."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import data_loading
from benchmarks.loading import contestants, processes, torch_peers
from benchmarks.loading.check import WrongBatchError, check
from benchmarks.loading.task import Batch, Epochs, make_data, photo
from tests.conftest import ROOT, clean_environment

BY_TORCH = ["in_ram", "loader_batches", "loader_collate", "loader_samples", "loader_pillow"]
ROWS = 600


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_each_task_reports_speed_and_memory_of_each_contestant(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--contestants", ",".join(BY_TORCH), "--rounds", "1", "--seconds", "0.05"]
    options += ["--samples", str(ROWS), "--cache", str(cache), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_loading", *options],
        env=clean_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    found = json.loads(out.read_text())
    assert found["left_out"] == {"A1": {}, "A2": {}, "B": {}}
    took_part = {task: set(of["samples_per_s"]) for task, of in found["tasks"].items()}
    assert took_part == {
        "A1": set(BY_TORCH[:4]),
        "A2": set(BY_TORCH[:4]),
        "B": {"loader_pillow"},
    }
    for of in found["tasks"].values():
        for name, speed in of["samples_per_s"].items():
            assert 0 < speed["min"] <= speed["median"] <= speed["max"]
            assert speed["n"] == 1
            assert of["peak_rss_mb"][name] > of["peak_anon_mb"][name] > 10
    assert found["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda images, labels: (images.double(), labels), id="dtype"),
        pytest.param(lambda images, labels: (images[:, :2], labels), id="shape"),
        pytest.param(lambda images, labels: (images[..., ::2], labels), id="size"),
        pytest.param(lambda images, labels: (images * 2, labels), id="deviation"),
        pytest.param(lambda images, labels: (images, labels.roll(1)), id="other labels"),
        pytest.param(lambda images, labels: (images[1:], labels[1:]), id="samples missing"),
        pytest.param(lambda images, labels: (images.flip(2), labels), id="other pictures"),
    ],
)
@pytest.mark.parametrize("name", ["A1", "A2"])
def test_wrong_batches_are_refused(
    cache: Path, name: str, change: Callable[[torch.Tensor, torch.Tensor], Batch]
) -> None:
    task = make_data(cache, name, ROWS)
    check(task, torch_peers.in_ram(task, cache, 1), complete=True)

    def changed() -> Epochs:
        for epoch in torch_peers.in_ram(task, cache, 1):
            yield [change(*batch) for batch in epoch]

    with pytest.raises(WrongBatchError):
        check(task, changed(), complete=True)


def test_what_is_not_shuffled_or_not_moved_is_refused(cache: Path) -> None:
    moves = make_data(cache, "A2", ROWS)
    still = torch_peers.in_ram(make_data(cache, "A1", ROWS), cache, 1)
    with pytest.raises(WrongBatchError, match="moved and flipped in 1 ways"):
        check(moves, still, complete=True)
    task = make_data(cache, "A1", ROWS)

    def in_order() -> Epochs:
        for epoch in torch_peers.in_ram(task, cache, 1):
            images, labels = (torch.cat(of) for of in zip(*epoch, strict=True))
            order: Any = labels.argsort()
            yield [(images[rows], labels[rows]) for rows in order.split(task.batch)]

    with pytest.raises(WrongBatchError, match="not shuffled"):
        check(task, in_order(), complete=True)


def test_crops_of_other_pictures_are_refused(cache: Path) -> None:
    task = make_data(cache, "B", ROWS)

    def mixed_up() -> Epochs:
        for epoch in torch_peers.loader_pillow(task, cache, 0):
            yield ((images, labels.flip(0)) for images, labels in epoch)

    with pytest.raises(WrongBatchError, match="colours"):
        check(task, mixed_up(), complete=True)


def test_the_data_are_the_same_each_time() -> None:
    def encoded(row: int) -> bytes:
        buffer = io.BytesIO()
        photo(row).save(buffer, "PNG")
        return buffer.getvalue()

    assert encoded(3) == encoded(3) != encoded(4)


def test_who_is_not_installed_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    entries = {
        **contestants.CONTESTANTS,
        "rare": contestants.Entry("torch_peers", {"A1": 0}, {"not_there": "not-there"}),
    }
    monkeypatch.setattr(data_loading, "CONTESTANTS", entries)
    present, left_out = data_loading.who("A1", ["in_ram", "loader_cv2", "rare"])
    assert present == {"in_ram": 2}  # loader_cv2 does another task
    assert left_out == {"rare": "not there: not-there"}

    def fail(*_: object) -> processes.Measured:
        raise processes.FailedError("OSError: disk")

    monkeypatch.setattr(data_loading, "measured", fail)
    run = processes.Run("A1", ROWS, cache)
    assert data_loading.checked(run, present, left_out) == {}
    assert left_out["in_ram"] == "failed: OSError: disk"
    assert "A1: rare is left out; not there: not-there" in capsys.readouterr().err


def test_a_failing_process_is_reported_with_its_last_line(cache: Path) -> None:
    run = processes.Run("A1", ROWS, cache)
    with pytest.raises(processes.FailedError, match="KeyError: 'nobody'"):
        processes.measured(run, "nobody", 0, 0)


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert data_loading.parsed(["--tasks", "B,A1"]).tasks == ["A1", "B"]
    with pytest.raises(SystemExit):
        data_loading.parsed(["--contestants", "grains"])
    assert "no contestants grains; there are distrain, in_ram" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        data_loading.parsed(["--rounds", "0"])
    assert "at least 1 round" in capsys.readouterr().err
