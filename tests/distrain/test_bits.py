"""The promise: the number of workers changes the speed and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORLD_SIZES = (1, 2, 3)


Matrix = dict[int, dict[str, str]]
"""For each world size, what each row ended with."""


def trained(
    run_program: Callable[..., None], folder: Path, world_sizes: tuple[int, ...], *which: str
) -> Matrix:
    found: Matrix = {}
    for workers in world_sizes:
        out = folder / f"{workers}.json"
        run_program("matrix.py", workers, out, *which)
        content = json.loads(out.read_text())
        assert content["world_size"] == workers
        found[workers] = content["rows"]
    return found


@pytest.fixture(scope="module")
def matrix(run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return trained(run_program, tmp_path_factory.mktemp("matrix"), WORLD_SIZES)


def test_weights_and_scores_are_bit_equal_on_1_2_and_3_workers(
    matrix: Matrix,
) -> None:
    assert len(matrix[1]) == 9 * 6 + 28
    for workers in WORLD_SIZES[1:]:
        differing = [row for row, ended in matrix[workers].items() if ended != matrix[1][row]]
        assert not differing, f"{workers} workers against 1"


def test_rows_of_the_matrix_differ_from_each_other(matrix: Matrix) -> None:
    assert len(set(matrix[1].values())) == len(matrix[1])


def test_synchronised_batch_norm_is_bit_equal_on_1_to_4_workers(
    run_program: Callable[..., None], tmp_path: Path
) -> None:
    # With 4 workers, one has no micro-batch in an epoch's short last batch.
    found = trained(run_program, tmp_path, (1, 2, 3, 4), "sync")
    for workers in (2, 3, 4):
        differing = [row for row, ended in found[workers].items() if ended != found[1][row]]
        assert not differing, f"{workers} workers against 1"
    alone = found[1]
    for optimizer in ("sgd", "adamw", "micro"):
        assert alone[f"{optimizer}-recomputed"] == alone[f"{optimizer}-residual"]
    assert alone["no_norm"] == alone["micro-no_norm"]
    assert len(set(alone.values())) == len(alone) - 4, "all others differ"
