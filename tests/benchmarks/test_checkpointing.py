"""The benchmark of saves runs, tiny: each was made, verified and timed, its bytes written once."""

from pathlib import Path

import pytest

from benchmarks.checkpointing import Case
from tests.benchmarks.test_benchmarks import assert_conditions_are_stated, run


def test_checkpointing_reports_stalls_beside_each_peer_and_bytes_written_once(
    tmp_path: Path,
) -> None:
    short = ("--rounds", 1, "--saves", 2, "--every", 2, "--workers", "2,3")
    found = run(tmp_path, "checkpointing", "--parameters", 20_000, *short, "--folder", tmp_path)
    peers = {"torch_save", "dcp_async", "dcp_async_kept"}
    for name in ("stall_s", "whole_s"):
        assert set(found[name]) == {"distrain", *peers}
        assert all(seconds["n"] == 1 for seconds in found[name].values())
    for name in ("stall_of_distrain_as_a_ratio_to", "whole_of_distrain_as_a_ratio_to"):
        assert set(found[name]) == peers
    floats = 3 * 4 * found["config"]["parameters"]
    assert all(floats <= size < 2 * floats for size in found["bytes_on_disk"].values())
    by_workers = found["bytes_of_a_save_by_workers"]
    assert set(by_workers) == {"2", "3"}
    for counted in by_workers.values():
        assert counted["written_to_on_disk"] == pytest.approx(1.0, abs=0.1)
    assert_conditions_are_stated(found)
    assert not list(tmp_path.glob("checkpointing-*"))


def test_threads_and_processes_write_one_file_with_the_same_digests(tmp_path: Path) -> None:
    """The benchmark itself compares them; here of a file that ends within a chunk."""
    tiny = ("--megabytes", 40, "--rounds", 1, "--writers", "1,4", "--folder", tmp_path)
    found = run(tmp_path, "side_by_side", *tiny)
    ways = {"threads_1", "threads_4", "processes_1", "processes_4"}
    assert set(found["seconds"]) == set(found["megabytes_per_s"]) == ways
    assert set(found["processes_as_a_ratio_to_as_many_threads"]) == {"1", "4"}
    assert_conditions_are_stated(found)
    assert not list(tmp_path.glob("side-by-side-*"))


def test_a_loops_steps_are_timed_from_begin_to_begin() -> None:
    case = Case(1_000, saves=2, every=2)
    assert case.num_steps == 5
    case.begins = [0.0, 10.0, 11.0, 14.0, 15.0]
    # Step 1 warms up, and nobody sees the last one's end.
    assert case.durations() == {2: 1.0, 3: 3.0, 4: 1.0}
    assert [step for step in case.durations() if case.is_saved(step)] == [2, 4]
