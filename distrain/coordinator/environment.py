"""What a run's bits rest on beside its identity (rule 1): another one is no error, and is said."""

import json
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distrain.parallel.communicator import gather_bytes
from distrain.parallel.world import World

_CPU_INFO = Path("/proc/cpuinfo")
_NO_PART = ("world_size",)
"""Kept with it, and of no effect on bits."""


def _installed(*packages: str) -> dict[str, str]:
    """The versions of those that are there."""
    found = {name: list(metadata.distributions(name=name)) for name in packages}
    return {name: one[0].version for name, one in found.items() if one}


def numerics_fingerprint(device: torch.device, compute_threads: int) -> dict[str, Any]:
    """What the bits rest on beside the job: hardware, versions, threads (rule 1)."""
    found: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "compute_threads": compute_threads,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "libc": " ".join(platform.libc_ver()),
        # The order is drawn and pictures are decoded by these.
        **_installed("distrain", "numba", "llvmlite", "simplejpeg", "pillow"),
    }
    if device.type == "cuda":
        # Of this worker; its peers may sit on another kind.
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return found


def _cpu_name() -> str:
    """The CPU's model: libraries choose their kernels by it, and not by its capability alone."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def environment_of(
    world: World, before: Mapping[str, Any]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What `environment.json` is to hold; and what is to be said of it, as events with a text.

    An exchange, which all workers enter: on unlike hardware bits depend on who computed what.

    Args:
        world: The workers.
        before: What the file held when the run was last started; empty where it begins.
    """
    mine = numerics_fingerprint(world.device, torch.get_num_threads())
    told = gather_bytes(json.dumps(mine).encode(), world.communicator, world.device)
    unlike = unlike_workers([json.loads(each) for each in told])
    notes = [("unlike_workers", text) for text in unlike]
    if before and (changed := changes(before, mine)):
        notes.append(("environment", change_text(changed)))
    size_before = before.get("world_size", world.size)
    if size_before != world.size:
        notes.append(("workers", f"the number of workers is {world.size} now, was {size_before}"))
    return {**mine, "world_size": world.size}, notes


def unlike_workers(fingerprints: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line on each worker whose fingerprint is not rank 0's."""
    found = []
    for rank, theirs in enumerate(fingerprints):
        differing = changes(fingerprints[0], theirs)
        if differing:
            found.append(
                f"rank {rank} computes on something else than rank 0, so bits depend on who "
                f"computes what: {_listed(differing)}"
            )
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two fingerprints, by name; nothing is None."""
    names = [name for name in {**before, **now} if name not in _NO_PART]
    pairs = {name: (before.get(name), now.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def change_text(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """What a person is told where a run goes on in another environment."""
    return (
        "this run began in another environment, so its bits may differ from those of a run in one: "
        + _listed(changed)
    )


def _listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(
        f"{name} {_shown(before)} -> {_shown(now)}" for name, (before, now) in changed.items()
    )


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)
