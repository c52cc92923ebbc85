"""The benchmarks of runs whose workers are killed run, tiny, and report what they say."""

from pathlib import Path

import pytest

from benchmarks.goodput import Goodput, moments_of
from benchmarks.killed_runs import EVERY_STEPS
from tests.benchmarks.test_benchmarks import assert_conditions_are_stated, run


def test_recovery_reports_seconds_and_steps_beside_torchrun(tmp_path: Path) -> None:
    found = run(tmp_path, "recovery", "--workers", 2, "--rounds", 1, "--kills", 1, "--seed", 3)
    for figure in ("next_step", "caught_up", "twice"):
        assert {kind: told["n"] for kind, told in found[figure].items()} == {
            "distrain": 1,
            "torchrun": 1,
        }
    # Seed 3 kills between two checkpoints; torchrun's peer has no other to go on from.
    assert 0 < found["twice"]["torchrun"]["median"] < 2 * EVERY_STEPS
    assert 0 <= found["twice"]["distrain"]["median"] < 2 * EVERY_STEPS
    for kind in ("distrain", "torchrun"):
        assert 0 < found["next_step"][kind]["median"] <= found["caught_up"][kind]["median"]
    assert found["ratio_of_distrain_to_torchrun"]["next_step"]["n"] == 1
    assert found["config"]["seed"] == 3
    assert_conditions_are_stated(found)


def test_goodput_reports_both_shares_of_each_mean_time(tmp_path: Path) -> None:
    found = run(tmp_path, "goodput", "--workers", 2, "--seconds", 10, "--means", "7", "--seed", 1)
    told = found["by_mean_time_between_kills_s"]["7"]
    assert told["kills"] >= 1
    assert 0 < told["distrain"]["steps"] < 1
    assert told["distrain"]["wall"] > 0
    # Of 10 s a busy machine may leave torchrun so little that steps of before are done again still.
    assert -1 <= told["torchrun"]["steps"] < 1
    assert isinstance(told["torchrun"]["wall"], float)
    assert_conditions_are_stated(found)


def test_shares_count_what_was_done_twice_and_what_was_cut_off() -> None:
    found = Goodput(kills=2, steps=90, twice=8, step_s=0.5, wall_s=60.0)
    assert found.shares() == {"steps": 0.9, "wall": 0.75}


def test_moments_are_drawn_exponentially_from_the_seed() -> None:
    moments = moments_of(7, 10.0, 100_000.0, 4)
    assert moments == moments_of(7, 10.0, 100_000.0, 4)
    assert moments != moments_of(8, 10.0, 100_000.0, 4)
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    assert {rank for _, rank in moments} == {0, 1, 2, 3}
    assert moments_of(7, 1e9, 10.0, 4)[0][0] == 5.0
