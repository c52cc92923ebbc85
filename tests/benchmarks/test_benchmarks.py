"""Each benchmark runs, tiny, and reports what it says."""

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, clean_environment


def test_step_overhead_reports_ratios_to_each_peer(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.step_overhead", "--rounds", "1", "--epochs", "1"]
    done = subprocess.run(
        [*command, "--out", str(out)],
        env=clean_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["workers"] == 2
    assert set(found["samples_per_s"]) == {"distrain", "ddp_loader", "ddp_by_hand"}
    assert set(found["ratio_of_distrain_to"]) == {"ddp_loader", "ddp_by_hand"}
    assert all(speed > 0 for speed in found["samples_per_s"].values())
