"""The promise: the number of workers changes the speed and nothing else."""

import json
from collections.abc import Callable

import pytest

WORLD_SIZES = (1, 2, 3)


@pytest.fixture(scope="module")
def matrix(
    run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, str]]:
    """For each world size, what each row of the matrix ended with."""
    found: dict[int, dict[str, str]] = {}
    for workers in WORLD_SIZES:
        out = tmp_path_factory.mktemp("matrix") / "rows.json"
        run_program("matrix.py", workers, out)
        content = json.loads(out.read_text())
        assert content["world_size"] == workers
        found[workers] = content["rows"]
    return found


def test_weights_and_scores_are_bit_equal_on_1_2_and_3_workers(
    matrix: dict[int, dict[str, str]],
) -> None:
    assert len(matrix[1]) == 9 * 6 + 17
    for workers in WORLD_SIZES[1:]:
        differing = [row for row, ended in matrix[workers].items() if ended != matrix[1][row]]
        assert not differing, f"{workers} workers against 1"


def test_rows_of_the_matrix_differ_from_each_other(matrix: dict[int, dict[str, str]]) -> None:
    assert len(set(matrix[1].values())) == len(matrix[1])
