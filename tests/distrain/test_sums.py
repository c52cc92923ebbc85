"""However gradients travel, and whoever updates which weights, the bits are the same."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

WORLD_SIZES = (1, 3, 4)


@pytest.fixture(scope="module")
def rows(
    run_program: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, str]]:
    """By what was trained: what each way to sum ended with at each world size."""
    found: dict[str, dict[str, str]] = {}
    for workers in WORLD_SIZES:
        out: Path = tmp_path_factory.mktemp("sums") / "rows.json"
        run_program("sums.py", workers, out)
        for row, ended in json.loads(out.read_text()).items():
            trained, _, way = row.rpartition("-")
            found.setdefault(trained, {})[f"{way} on {workers}"] = ended
    return found


def test_every_way_to_sum_gives_one_result_on_1_3_and_4_workers(
    rows: dict[str, dict[str, str]],
) -> None:
    assert len(rows) == 13 + 4
    for trained, ended in rows.items():
        first = next(iter(ended.values()))
        assert [way for way in ended if ended[way] != first] == [], trained
        assert len(ended) >= 3 * len(WORLD_SIZES)


def test_what_is_trained_differs(rows: dict[str, dict[str, str]]) -> None:
    # What is recomputed in either way is what was computed.
    assert len({ended["whole on 1"] for ended in rows.values()}) == len(rows) - 2
