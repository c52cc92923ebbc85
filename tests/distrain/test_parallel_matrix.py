"""One SHA-256 a row: batch norm, optimizer, precision and net, whoever computes and whatever sends.

{micro, sync batch norm} x {SGD with momentum, AdamW} x {float32, bfloat16 autocast} x {residual,
branching, checkpointed net}; each row plain and sharded, on 1 to 4 workers by torch, on 2 and 4 by
Horovod.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.alone import distrain_alone
from tests.conftest import PROGRAMS, Completed

NUM_ROWS = 3 * 2 * 2 * 2

Rows = dict[str, str]


def trained(distrain: Callable[..., Completed], out: Path, workers: int, backend: str) -> Rows:
    program = (PROGRAMS / "parallel_matrix.py", out, backend)
    done = distrain("launch", "--workers", workers, "--backend", backend, *program)
    assert done.returncode == 0, done.stdout + done.stderr
    rows: Rows = json.loads(out.read_text())
    return rows


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    return trained(distrain_alone, tmp_path_factory.mktemp("matrix") / "alone.json", 1, "torch")


def differing(rows: Rows, expected: Rows) -> list[str]:
    return [row for row in expected if rows[row] != expected[row]]


def test_sharding_changes_no_row_and_the_rows_differ(alone: Rows) -> None:
    plain = {row.removesuffix(": plain"): alone[row] for row in alone if row.endswith(": plain")}
    assert len(plain) == NUM_ROWS
    assert len(alone) == 2 * NUM_ROWS
    assert [row for row in plain if alone[f"{row}: sharded"] != plain[row]] == []
    assert len(set(plain.values())) == NUM_ROWS


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_every_row_has_one_digest_on_any_number_of_workers(
    distrain: Callable[..., Completed], tmp_path: Path, alone: Rows, workers: int
) -> None:
    assert differing(trained(distrain, tmp_path / "rows.json", workers, "torch"), alone) == []


@pytest.mark.horovod
@pytest.mark.parametrize("workers", [2, 4])  # with 4, one has no micro-batch in some steps
def test_every_row_has_the_same_digest_on_horovod(
    distrain: Callable[..., Completed], tmp_path: Path, alone: Rows, workers: int
) -> None:
    assert differing(trained(distrain, tmp_path / "rows.json", workers, "horovod"), alone) == []
