"""A run's folder: one holder at a time, one job for good, and files that are whole or refused."""

import json
import os
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from data_pipeline import DataError, StorageError
from distrain.coordinator.run_folder import (
    RunFolder,
    load_model,
    model_bytes,
)
from distrain.coordinator.run_layout import DONE
from distrain.errors import ConfigError
from distrain.parallel.replicas import weights_digest

IDENTITY: dict[str, Any] = {
    "seed": 0,
    "loss": "CrossEntropyLoss(ignore_index=-100)",
    "augment": ["Shift(pixels=1)"],
}


def open_folder(path: Path, *, fresh: bool = False, **changes: object) -> RunFolder:
    return RunFolder(path, {**IDENTITY, **changes}, fresh=fresh)


def begun(path: Path, *, fresh: bool = False, job: Mapping[str, Any] | None = None) -> RunFolder:
    folder = open_folder(path, fresh=fresh)
    folder.begin(job or {}, {"torch": "2", "world_size": 1}, epochs=3, steps=12, goes_on=False)
    return folder


def names(path: Path) -> set[str]:
    return {item.name for item in path.iterdir()}


def test_a_second_holder_is_refused_while_the_first_lives_and_let_in_after(tmp_path: Path) -> None:
    with (
        begun(tmp_path / "run"),
        pytest.raises(ConfigError, match=r"in use by a live run \(pid \d+ on .*\): wait"),
    ):
        open_folder(tmp_path / "run")
    open_folder(tmp_path / "run").close()


def test_fresh_does_not_move_a_live_runs_folder_away(tmp_path: Path) -> None:
    with begun(tmp_path / "run"), pytest.raises(ConfigError, match="in use by a live run"):
        open_folder(tmp_path / "run", fresh=True)
    assert names(tmp_path) == {"run"}


def test_the_lock_of_another_process_dies_with_it(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    program = (
        "import fcntl, sys; lock = open(sys.argv[1]); fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "run" / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ConfigError, match="in use by a live run"):
            open_folder(tmp_path / "run")
        holder.kill()
    open_folder(tmp_path / "run").close()


def test_a_folder_is_given_up_when_it_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    for _ in range(2):
        with pytest.raises(ConfigError, match="belongs to another job"):
            open_folder(tmp_path / "run", seed=1)
    open_folder(tmp_path / "run").close()


def test_another_jobs_folder_is_refused_with_all_that_differs_and_nothing_else(
    tmp_path: Path,
) -> None:
    begun(tmp_path / "run").close()
    with pytest.raises(ConfigError) as caught:
        open_folder(tmp_path / "run", seed=1, augment=[], clip="Clip(norm=1.0)")
    message = str(caught.value)
    assert "seed: 0 there, 1 now" in message
    assert "augment: ['Shift(pixels=1)'] there, [] now" in message
    assert "clip: nothing there, Clip(norm=1.0) now" in message
    assert "loss" not in message
    assert "--fresh" in message


def test_the_same_job_takes_its_folder_over(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    with open_folder(tmp_path / "run") as folder:
        assert folder.status()["state"] == "running"


def test_the_job_file_holds_the_job_and_its_identity(tmp_path: Path) -> None:
    begun(tmp_path / "run", job={"training": {"epochs": 3}}).close()
    recorded = tomllib.loads((tmp_path / "run" / "job.toml").read_text())
    assert recorded == {"training": {"epochs": 3}, "identity": IDENTITY}
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment == {"torch": "2", "world_size": 1}


def test_a_begin_clears_what_an_unfinished_start_left(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    for name in ("model.safetensors", "events.jsonl"):
        (tmp_path / "run" / name).write_text("old")
    (tmp_path / "run" / "tensorboard").mkdir()
    begun(tmp_path / "run").close()
    assert names(tmp_path / "run") == {
        "environment.json",
        "generation",
        "job.toml",
        "lock",
        "status.json",
    }


def test_fresh_moves_the_folder_aside_each_time_under_a_new_name(tmp_path: Path) -> None:
    for number in range(3):
        with begun(tmp_path / "run", fresh=True) as folder:
            folder.write_status(DONE, number=number)
    assert names(tmp_path) == {"run", "run.old-1", "run.old-2"}
    numbers = {
        path.name: json.loads((path / "status.json").read_text())["number"]
        for path in tmp_path.iterdir()
    }
    assert numbers == {"run.old-1": 0, "run.old-2": 1, "run": 2}


def test_fresh_does_not_move_the_folder_in_which_the_program_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    begun(Path()).close()
    with pytest.raises(ConfigError, match=r"the run folder \. cannot be moved aside from within"):
        open_folder(Path(), fresh=True)
    open_folder(Path()).close()
    assert names(tmp_path) == {"run"}


def test_fresh_frees_a_folder_of_another_job(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    open_folder(tmp_path / "run", fresh=True, seed=1).close()
    assert names(tmp_path) == {"run", "run.old-1"}


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_runs_is_refused_and_left_as_it_was(
    tmp_path: Path, fresh: bool
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds thesis\.tex and no job\.toml: it is no run's"):
        open_folder(tmp_path, fresh=fresh)
    assert names(tmp_path) == {"thesis.tex"}


def test_a_file_called_lock_in_someone_elses_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("mine")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="it is no run's folder"):
        open_folder(tmp_path)
    assert (tmp_path / "lock").read_text() == "mine"


def test_the_remains_of_a_first_start_that_was_killed_are_no_hindrance(tmp_path: Path) -> None:
    for name in (".job.toml.12-34.partial", "lock"):
        (tmp_path / name).write_text("")
    begun(tmp_path).close()
    assert "job.toml" in names(tmp_path)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    begun(tmp_path).close()
    assert "job.toml" in names(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_where_the_folder_should_be_is_a_storage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"the run folder .* cannot be written: .*--run\.dir"):
        open_folder(tmp_path / place)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[]", b"3"])
def test_a_damaged_status_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    with begun(tmp_path / "run") as folder:
        (tmp_path / "run" / "status.json").write_bytes(content)
        with pytest.raises(ConfigError, match=r"status\.json cannot be read: .*--fresh"):
            folder.status()


@pytest.mark.parametrize("content", [b"[identity", b"", b"a = 1\n", b"\xff\xfe", b"identity = 3\n"])
def test_a_damaged_job_file_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    begun(tmp_path / "run").close()
    (tmp_path / "run" / "job.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"job\.toml cannot be read .*--run\.dir.*--fresh"):
        open_folder(tmp_path / "run")
    open_folder(tmp_path / "run", fresh=True).close()


def test_the_status_is_replaced_as_a_whole(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as folder:
        running = folder.status()
        assert (running["state"], running["epochs"], running["starts"]) == ("running", 3, 1)
        assert (running["pid"], running["host"]) == (os.getpid(), socket.gethostname())
        folder.write_status(DONE, exit_code=0)
        status = folder.status()
    who = {"run_id", "starts", "pid", "host", "workers", "workers_range"}
    assert set(status) == {"state", "time", "exit_code", *who}
    assert (status["run_id"], status["workers"]) == (running["run_id"], 1)
    assert (status["state"], status["exit_code"]) == ("done", 0)


def test_an_orphan_of_an_earlier_start_writes_no_more(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as orphan:
        # As on a disk whose locks don't reach the other node.
        (tmp_path / "run" / "lock").unlink()
        with begun(tmp_path / "run") as newer:
            newer.write_status(DONE, starts_seen=newer.status()["starts"])
            before = (tmp_path / "run" / "status.json").read_bytes()
            for write in (
                lambda: orphan.write_status(DONE),
                lambda: orphan.write_result(nn.Linear(1, 1)),
                orphan.check_generation,
            ):
                with pytest.raises(ConfigError, match=r"newer start .* this one \(start 1\) ends"):
                    write()
            assert (tmp_path / "run" / "status.json").read_bytes() == before
            assert newer.status()["starts"] == 2
        assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_begun_afresh_shuts_out_an_orphan_as_well(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as orphan:
        (tmp_path / "run" / "lock").unlink()
        with begun(tmp_path / "run", fresh=True), pytest.raises(ConfigError, match="newer start"):
            orphan.check_generation()


def test_a_new_folder_has_no_status(tmp_path: Path) -> None:
    with open_folder(tmp_path / "run") as folder:
        assert folder.status() == {}


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, nn.BatchNorm1d(4), second)


def channels_last() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@pytest.mark.parametrize("build", [tied, channels_last])
def test_a_result_is_loaded_by_plain_torch_and_has_the_same_bytes_each_time(
    tmp_path: Path, build: Any
) -> None:
    torch.manual_seed(0)
    model = build()
    with begun(tmp_path / "run") as folder:
        path = folder.write_result(model)
        written = path.read_bytes()
        assert folder.write_result(model).read_bytes() == written
    torch.manual_seed(1)
    other = build()
    assert weights_digest(other) != weights_digest(model)
    other.load_state_dict(load_file(path))
    assert weights_digest(other) == weights_digest(model)
    assert model_bytes(other) == written


def test_bytes_do_not_depend_on_how_the_memory_is_laid_out() -> None:
    torch.manual_seed(0)
    strided = channels_last()
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    plain.load_state_dict(strided.state_dict())
    assert not strided.state_dict()["0.weight"].is_contiguous()
    assert model_bytes(strided) == model_bytes(plain)


def test_one_changed_weight_gives_other_bytes() -> None:
    model = nn.Linear(3, 3)
    before = model_bytes(model)
    with torch.no_grad():
        model.weight[1, 1] += 1e-6
    assert model_bytes(model) != before


def test_a_result_is_set_into_a_model(tmp_path: Path) -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    (tmp_path / "m").write_bytes(model_bytes(first))
    load_model(second, tmp_path / "m")
    assert weights_digest(second) == weights_digest(first)


@pytest.mark.parametrize("content", [None, b"", b"junk" * 9, model_bytes(nn.Linear(2, 2))])
def test_a_result_that_is_missing_damaged_or_another_models_is_bad_data(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    with pytest.raises(DataError, match="m cannot be loaded into the model: "):
        load_model(nn.Linear(3, 3), tmp_path / "m")
