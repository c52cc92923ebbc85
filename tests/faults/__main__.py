"""`make faults`: injects every fault, prints a table and leaves a record.

python -m tests.faults [--seed N] [--only PATTERN] [--out FILE.json]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.conditions import conditions
from tests.conftest import ROOT
from tests.faults.catalogue import FAULTS
from tests.faults.job import digits_with_rows
from tests.faults.trial import MissingToolError, Record, try_fault


def main(argv: list[str] | None = None) -> int:
    """0 if nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**9)
    parser.add_argument("--only", default="", help="faults whose names match this pattern")
    parser.add_argument("--out", type=Path, help="where the record goes")
    given = parser.parse_args(argv)
    print(f"seed {given.seed}")
    records, troubles = [], []
    chosen = [fault for fault in FAULTS if re.search(given.only, fault.name)]
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        digits = digits_with_rows(Path(name))
        for number, fault in enumerate(chosen):
            try:
                records.append(try_fault(fault, digits, Path(name) / f"{number}", given.seed))
                print(line(records[-1]), flush=True)
            except MissingToolError as error:
                troubles.append(f"{fault.name}: not injected: {error}")
                print(troubles[-1], flush=True)
            except Exception:  # noqa: BLE001 - the others are tried all the same
                troubles.append(f"{fault.name}: LOST\n{traceback.format_exc()}")
                print(troubles[-1], flush=True)
            if given.out is not None:
                text = json.dumps(record(given.seed, records, troubles), indent=2)
                given.out.write_text(text + "\n")
    print(f"{sum(found.injected for found in records)} faults injected, {len(troubles)} troubles")
    return 1 if troubles else 0


def line(found: Record) -> str:
    return (
        f"{found.fault:62} {found.injected:3} times {found.steps_again:4} steps again "
        f"{found.seconds:6.1f} s ({found.variant})"
    )


def record(seed: int, records: list[Record], troubles: list[str]) -> dict[str, object]:
    """What a file of `results/` holds."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "seed": seed,
        "commit": head.stdout.strip() or "unknown",
        "conditions": conditions(),
        "faults": [vars(found) for found in records],
        "troubles": troubles,
    }


if __name__ == "__main__":
    sys.exit(main())
