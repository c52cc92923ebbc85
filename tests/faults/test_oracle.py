"""The oracle of the faults sees what it is there to see."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults import oracle
from tests.faults.oracle import judge
from tests.run_folders import Outcome, outcome

EXPECTED_STEPS = [{"event": "step", "step": step + 1, "samples": 2} for step in range(6)]


@pytest.fixture(autouse=True)
def one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "STEPS", 6)


def leave_run(folder: Path, weights: bytes, steps: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "events.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return folder


def leave_rows(folder: Path, pid: int, start: int, steps: dict[int, list[int]]) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / f"rows-{pid}.jsonl").open("a") as file:
        for step, rows in steps.items():
            time_ns = 1000 * start + step
            said = {"start": start, "time": time_ns, "step": step, "rows": rows}
            file.write(json.dumps(said) + "\n")


@pytest.fixture
def expected(tmp_path: Path) -> Outcome:
    return outcome(leave_run(tmp_path / "unbroken", b"weights", EXPECTED_STEPS))


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Two workers do all steps, a row each; from step 3 on the second start of the run does."""
    for rank in (0, 1):
        leave_rows(tmp_path / "points", rank, 1, {step: [2 * step + rank] for step in range(5)})
        leave_rows(tmp_path / "points", rank, 2, {step: [2 * step + rank] for step in range(3, 6)})
    return tmp_path / "points"


def test_steps_that_were_done_again_are_counted_once(
    tmp_path: Path, points: Path, expected: Outcome
) -> None:
    run = leave_run(tmp_path / "run", b"weights", EXPECTED_STEPS)
    assert judge(run, points, expected) == 2


def test_other_weights_are_seen(tmp_path: Path, points: Path, expected: Outcome) -> None:
    run = leave_run(tmp_path / "run", b"Weights", EXPECTED_STEPS)
    with pytest.raises(AssertionError, match="the weights differ"):
        judge(run, points, expected)


def test_another_log_is_seen(tmp_path: Path, points: Path, expected: Outcome) -> None:
    run = leave_run(tmp_path / "run", b"weights", EXPECTED_STEPS[:-1])
    with pytest.raises(AssertionError, match="other steps or epochs"):
        judge(run, points, expected)


@pytest.mark.parametrize("rows", [[11], [10, 10], [10, 12], []])
def test_a_sample_that_is_left_out_or_used_twice_is_seen(
    tmp_path: Path, points: Path, expected: Outcome, rows: list[int]
) -> None:
    leave_rows(points, 3, 3, {5: rows})
    run = leave_run(tmp_path / "run", b"weights", EXPECTED_STEPS)
    with pytest.raises(AssertionError, match="epoch 1 did not use every sample once"):
        judge(run, points, expected)
