"""The README's table of faults, from what `make faults` has recorded.

python -m tests.faults.table        prints it
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.catalogue import FAULTS

RESULTS = Path(__file__).parent / "results"


def recorded() -> list[dict[str, Any]]:
    """All records, by name."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def table(records: Sequence[dict[str, Any]]) -> str:
    """A row a fault that was tried: the sum over all records."""
    lines = ["| fault | runs | times | steps done again | losses |", "|---|---|---|---|---|"]
    for name in (fault.name for fault in FAULTS):
        tries = [
            found for record in records for found in record["faults"] if found["fault"] == name
        ]
        losses = [
            text for record in records for text in record["troubles"] if text.startswith(name)
        ]
        if tries or losses:
            injected = sum(found["injected"] for found in tries)
            again = sum(found["steps_again"] for found in tries)
            runs, lost = len(tries) + len(losses), len(losses) or "none"
            lines.append(f"| {name} | {runs} | {injected} | {again} | {lost} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(recorded()))
