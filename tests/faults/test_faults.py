"""Whatever happens to a run, it ends with the weights and the samples of the unbroken one.

DISTRAIN_FAULT_SEED=N injects the same faults at the same moments again; the seed stands in each
test's name. `make faults` injects all of them.
"""

import os
import random
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.catalogue import drawn
from tests.faults.job import VARIANTS, digits_with_rows
from tests.faults.table import recorded, table
from tests.faults.trial import Fault, MissingToolError, try_fault

NUMBER = 5

TOOLS_ARE_REQUIRED = "DISTRAIN_REQUIRE_FAULTS"
"""Environment variable: set where no fault may be left out, as in CI."""


def fault_seed() -> int:
    """Another each day and for each commit: all processes of a test run draw the same."""
    if given := os.environ.get("DISTRAIN_FAULT_SEED"):
        return int(given)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    commit = int(head.stdout.strip() or "0", 16)
    return (commit + datetime.now(UTC).toordinal()) % 10**6


SEED = fault_seed()

VARIANT = random.Random(SEED).choice(list(VARIANTS))
"""One for all: each has an unbroken run to be compared with."""


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_with_rows(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, id=f"{fault.name}-{SEED}") for fault in drawn(SEED, NUMBER)]
)
def test_a_fault_costs_no_bit_and_no_sample(fault: Fault, numbered: Path, tmp_path: Path) -> None:
    try:
        record = try_fault(fault, numbered, tmp_path / "trial", SEED, VARIANT)
    except MissingToolError as error:
        if os.environ.get(TOOLS_ARE_REQUIRED):
            raise
        pytest.skip(f"{fault.name} is not injected: {error}")
    assert record.injected


def test_the_same_seed_draws_the_same_faults() -> None:
    assert drawn(SEED, NUMBER) == drawn(SEED, NUMBER)
    assert len({fault.name for fault in drawn(SEED, NUMBER)}) == NUMBER
    assert len({drawn(seed, NUMBER)[0].name for seed in range(100)}) > NUMBER


def test_the_readme_has_the_table_of_the_recorded_runs() -> None:
    records = recorded()
    assert len({record["seed"] for record in records}) >= 3
    assert table(records) in (ROOT / "README.md").read_text()
