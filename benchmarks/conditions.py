"""The conditions that a figure was measured under, and how its spread is stated."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch


def conditions(packages: Sequence[str] = ()) -> dict[str, object]:
    """Hardware, versions (of torch and `packages`), date and load, for a result's JSON."""
    versions = {name: metadata.version(name) for name in ("torch", *packages)}
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average_1_min": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"


def spread(values: Sequence[float], digits: int = 3) -> Mapping[str, float]:
    """Median, least, most and number of some measurements."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "n": len(values),
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ratios by round: what was measured side by side is divided."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]
