"""What sums and steps of other lengths take: each benchmark runs, tiny, and proves its sums."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import affinity, reduction
from tests.benchmarks.test_benchmarks import assert_conditions_are_stated, run

OF_GLOO = {"distrain", "whole", "all_gather", "shares", "all_reduce"}


def assert_times_are_stated(found: Any, variants: set[str]) -> None:
    for of in found["by_floats"].values():
        assert set(of["ms"]) == set(of["mb_sent_by_the_busiest_worker"]) == variants
        assert set(of["time_of_distrain_as_a_ratio_to"]) == variants - {"distrain"}
        for times in of["ms"].values():
            assert 0 < times["min"] <= times["median"] <= times["max"]
            assert times["n"] == 1
        assert of["left_out_for_memory"] == []
    assert_conditions_are_stated(found)


def test_reduction_reports_each_transports_time_and_bytes(tmp_path: Path) -> None:
    # 8 micro-batches on 3 workers: 0 to 2, 3 to 5, 6 and 7, so the first two send two sums each
    size = ("--workers", 3, "--micro-batches", 8, "--sizes", "100,2e5")
    short = ("--rounds", 1, "--seconds", 0.01, "--variants", ",".join(OF_GLOO))
    found = run(tmp_path, "reduction", *size, *short)
    assert found["config"] == {"workers": 3, "micro_batches": 8, "rounds": 1}
    assert set(found["by_floats"]) == {"100", "200,000"}
    assert_times_are_stated(found, OF_GLOO)
    sent = found["by_floats"]["200,000"]["mb_sent_by_the_busiest_worker"]
    assert sent["whole"] == sent["all_gather"] == 2 * 2 * 0.8
    assert sent["shares"] == sent["distrain"] == pytest.approx((2 * 2 + 2) * 0.8 / 3, abs=1e-3)
    assert sent["all_reduce"] == pytest.approx(2 * 2 * 0.8 / 3, abs=1e-3)


def test_affinity_reports_the_ratio_of_pinned_workers_to_free_ones(tmp_path: Path) -> None:
    found = run(tmp_path, "affinity", "--rounds", 1, "--epochs", 1)
    assert found["pinned_to_free"]["n"] == 1
    assert all(found["samples_per_s"][name] > 0 for name in ("free", "pinned"))
    assert_conditions_are_stated(found)


@pytest.mark.parametrize(
    ("cores", "workers", "shares"),
    [([0, 1], 2, [{0}, {1}]), ([4, 5, 6], 2, [{4}, {5, 6}]), ([0, 1], 3, [{0}, {1}, {0}])],
)
def test_each_worker_has_its_share_of_the_cores(
    cores: list[int], workers: int, shares: list[set[int]]
) -> None:
    assert [affinity.share(cores, rank, workers) for rank in range(workers)] == shares


@pytest.mark.horovod
def test_reduction_measures_horovod_in_the_same_processes(tmp_path: Path) -> None:
    size = ("--workers", 2, "--sizes", "2e5", "--rounds", 1, "--seconds", 0.01)
    found = run(tmp_path, "reduction", *size)
    assert_times_are_stated(found, OF_GLOO | {"horovod"})
    assert found["versions"]["horovod"]


def test_reduction_says_that_horovod_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reduction, "find_spec", lambda _: None)
    started: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        reduction, "run_workers", lambda *arguments, **options: started.append((arguments, options))
    )
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    reduction.main(["--sizes", "10"])
    assert capsys.readouterr().err == "Horovod is not installed: make horovod; left out: horovod\n"
    ((arguments, options),) = started
    assert "distrain,whole,all_gather,shares,all_reduce" in arguments[0]
    assert options == {"backend": "torch"}


def test_reduction_refuses_wrong_sums_and_unknown_variants(
    capsys: pytest.CaptureFixture[str],
) -> None:
    total = reduction.pattern(0) + reduction.pattern(1)
    for name in ("shares", "all_reduce"):
        reduction.check(name, total, 2)
        reduction.check(name, total[:10], 2)
        with pytest.raises(RuntimeError, match=f"{name} sums 65521 floats wrongly"):
            reduction.check(name, total.roll(1), 2)
    by_a_bit = torch.nextafter(total, torch.tensor(torch.inf))
    reduction.check("all_reduce", by_a_bit, 2)
    with pytest.raises(RuntimeError, match="shares sums"):
        reduction.check("shares", by_a_bit, 2)
    with pytest.raises(RuntimeError, match="horovod sums"):
        reduction.check("horovod", total * torch.nan, 2)
    with pytest.raises(SystemExit):
        reduction.parsed(["--variants", "ring"])
    assert "no variant is called ring; there are distrain, " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        reduction.parsed(["--workers", "3", "--micro-batches", "2"])
    assert "as many micro-batches" in capsys.readouterr().err


def test_step_sizes_reports_ratios_for_each_number_of_parameters(tmp_path: Path) -> None:
    found = run(tmp_path, "step_sizes", "--rounds", 1, "--sizes", "1000,10000")
    assert set(found["by_parameters"]) == {"1,000", "10,000"}
    for of in found["by_parameters"].values():
        assert set(of["step_ms"]) == {"distrain", "distrain_sharded", "ddp", "zero"}
        assert all(ms > 0 for ms in of["step_ms"].values())
        for name in ("distrain_to_ddp", "sharded_to_unsharded", "sharded_to_zero"):
            assert of[name]["n"] == 1
    assert found["config"]["workers"] == 2
    assert_conditions_are_stated(found)
