"""Each benchmark runs, tiny, and reports what it says; and what it counts was really done."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import billion_rows, digits_job, step_overhead
from data_pipeline import Dataset
from distrain.coordinator.run_layout import steps_in
from distrain.parallel.world import join
from tests.conftest import ROOT, clean_environment

WITHOUT_EXTRAS = {"distrain_sharded", "ddp_loader", "ddp_by_hand", "ddp_zero"}


def run(tmp_path: Path, module: str, *options: object) -> Any:
    """Runs a benchmark in a process of its own; what its JSON says."""
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *map(str, options), "--out", str(out)],
        env=clean_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def assert_conditions_are_stated(found: Any) -> None:
    assert found["hardware"]["cpu"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["date"].startswith("20")


def test_step_overhead_reports_ratios_to_each_peer_that_is_installed(tmp_path: Path) -> None:
    found = run(tmp_path, "step_overhead", "--rounds", 2, "--epochs", 2)
    peers = WITHOUT_EXTRAS | {
        name
        for name, (package, _) in step_overhead.PEERS.items()
        if importlib.util.find_spec(package)
    }
    assert set(found["samples_per_s"]) == {"distrain", *peers}
    assert all(speed > 0 for speed in found["samples_per_s"].values())
    assert set(found["ratio_of_distrain_to"]) == peers
    sharded = found["ratio_of_distrain_sharded_to_ddp_zero"]
    for ratio in (*found["ratio_of_distrain_to"].values(), sharded):
        assert ratio["n"] == 2
        assert ratio["min"] <= ratio["median"] <= ratio["max"]
    assert found["config"]["workers"] == 2
    assert all(loss < 1.5 for loss in found["loss_reached"].values())  # untrained, it is 2.3
    assert_conditions_are_stated(found)


def test_step_overhead_says_which_peer_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    names = ["distrain", "ddp_loader", "lightning", "fabric", "accelerate"]
    assert step_overhead.runnable(names) == ["distrain", "ddp_loader"]
    assert capsys.readouterr().err.splitlines() == [
        "lightning is not installed: pip install -e '.[bench]'; left out: lightning, fabric",
        "accelerate is not installed: pip install -e '.[bench]'; left out: accelerate",
    ]


def test_step_overhead_takes_some_variants_and_refuses_unknown_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert step_overhead.parsed(["--variants", "ddp_loader"]).variants == ["distrain", "ddp_loader"]
    with pytest.raises(SystemExit):
        step_overhead.parsed(["--variants", "lightening"])
    assert "no variant is called lightening; there are distrain, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        step_overhead.parsed(["--workers", "1"])
    assert "at least 2 workers" in capsys.readouterr().err


def test_a_variant_that_miscounts_or_learns_nothing_is_refused(digits: Path) -> None:
    data, world = Dataset(digits), join()
    honest = step_overhead.by_distrain(data, world.size)
    assert digits_job.prove("honest", honest, 1, data, world) < 1.5

    def miscounting(epochs: int) -> digits_job.Training:
        train = honest(epochs)
        return lambda: replace(train(), samples=len(data))

    with pytest.raises(RuntimeError, match="miscounting says that it trained on 1437 samples"):
        digits_job.prove("miscounting", miscounting, 1, data, world)

    def idle(epochs: int) -> digits_job.Training:
        train = honest(epochs)
        return lambda: replace(train(), model=digits_job.build_net())

    with pytest.raises(RuntimeError, match="idle learns nothing: its loss is 2"):
        digits_job.prove("idle", idle, 1, data, world)


def test_resume_reports_each_start_and_its_ratio_to_a_fresh_one(tmp_path: Path) -> None:
    size = ("--shards", 3, "--rows-per-shard", 10_000, "--global-batch", 64)
    found = run(tmp_path, "resume", "--rounds", 1, *size)
    assert found["config"]["rows"] == 30_000
    starts = {"fresh", "after_1_percent", "after_99_percent"}
    assert set(found["seconds_to_first_step"]) == starts
    assert all(seconds["median"] > 0 for seconds in found["seconds_to_first_step"].values())
    assert set(found["ratio_to_fresh"]) == starts - {"fresh"}
    assert_conditions_are_stated(found)


def test_a_resumed_start_does_the_step_that_the_checkpoint_names(tmp_path: Path) -> None:
    size = billion_rows.Size(shards=3, rows_per_shard=10_000, global_batch=64)
    runs = billion_rows.prepare(tmp_path, size, with_events=True)
    assert Dataset(tmp_path / "data").num_rows == 30_000
    for name, step in (("after_1_percent", 4), ("after_99_percent", 464)):
        assert steps_in(runs[name] / "checkpoints") == [step]
        billion_rows.seconds_to_step(tmp_path / "data", runs[name], size.global_batch, 2)
        lines = (runs[name] / "events.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        assert [event["step"] for event in events if event["event"] == "resume"] == [step]
        steps = [event["step"] for event in events if event["event"] == "step"]
        assert steps == list(range(1, step + 2))  # the second new one is ended within


def test_restart_reports_where_the_seconds_go(tmp_path: Path) -> None:
    found = run(tmp_path, "restart", "--workers", 2, "--kills", 2)
    stages = ("noticed", "started", "prepared", "stepped")
    assert set(found["seconds"]) == {*stages, "whole"}
    assert all(found["seconds"][stage]["min"] >= 0 for stage in stages)
    # The least of each stage together are no more than the least whole.
    assert sum(found["seconds"][stage]["min"] for stage in stages) <= (
        found["seconds"]["whole"]["min"] + 0.01
    )
    assert found["seconds"]["whole"]["n"] == 2
    assert_conditions_are_stated(found)


def test_jpeg_decoding_reports_each_way_and_how_far_it_is_from_pillows(tmp_path: Path) -> None:
    found = run(tmp_path, "jpeg_decoding", "--images", 6, "--rounds", 1)
    assert_conditions_are_stated(found)
    assert any(name.startswith("simplejpeg") for name in found["decode"])
    assert any("distrain" in name for name in found["whole_way"])
    for way in found["whole_way"].values():
        assert way["mean_difference_to_pillow"] < 3


def test_precision_reports_what_each_way_costs(tmp_path: Path) -> None:
    ways = ("float32", "bfloat16", "activation_checkpointing", "channels_last")
    found = run(tmp_path, "precision", "--rounds", 2, "--steps", 1, "--size", 8, "--ways", *ways)
    for name in ("step_s", "step_ratio_to_float32", "first_step_s", "kept_bytes"):
        assert set(found[name]) == set(ways)
    assert found["step_ratio_to_float32"]["float32"]["median"] == 1.0
    kept = found["kept_bytes"]
    assert kept["bfloat16"] < kept["float32"]
    assert kept["activation_checkpointing"] < kept["float32"]
    assert_conditions_are_stated(found)
