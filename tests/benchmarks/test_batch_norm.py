"""The benchmark of synchronised batch norm runs, tiny, and reports what it says."""

from pathlib import Path

import pytest

from benchmarks import batch_norm
from tests.benchmarks.test_benchmarks import assert_conditions_are_stated, run


@pytest.mark.parametrize(("workers", "peers"), [(1, {"micro", "torch"}), (2, {"micro"})])
def test_batch_norm_reports_times_and_ratios(tmp_path: Path, workers: int, peers: set[str]) -> None:
    found = run(
        tmp_path,
        "batch_norm",
        *("--workers", workers, "--micro-batches", 4, "--rounds", 2, "--epochs", 1),
    )
    assert set(found["ms_a_step"]) == {"sync", *peers}
    assert set(found["time_of_sync_as_a_ratio_to"]) == peers
    for times in found["ms_a_step"].values():
        assert 0 < times["min"] <= times["median"] <= times["max"]
        assert times["n"] == 2
    assert found["config"] == {
        "workers": workers,
        "micro_batches": 4,
        "micro_batch": 32,
        "norms": 4,
        "rounds": 2,
        "epochs_per_round": 1,
    }
    assert_conditions_are_stated(found)


def test_batch_norm_refuses_more_workers_than_micro_batches(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        batch_norm.parsed(["--workers", "3", "--micro-batches", "2"])
    assert "no more than micro-batches" in capsys.readouterr().err
