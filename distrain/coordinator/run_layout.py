"""What stands in a run's folder, and the states that its `status.json` knows."""

import re
from pathlib import Path

JOB = "job.toml"
STATUS = "status.json"
RESULT = "model.safetensors"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
LOCK = "lock"
GENERATION = "generation"
RESIZE = "resize.json"
STACKS = "stacks"
LOGS = "logs"

RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped", "failed"

_CHECKPOINT = re.compile(r"step-(\d{9,})")


def folder_name(step: int) -> str:
    """The folder of the checkpoint after a number of steps; names sort as the steps do."""
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step that a folder's name is of; None for another folder."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None


def steps_in(root: Path) -> list[int]:
    """The steps that `root` has checkpoints of, oldest first; only names are looked at."""
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    return sorted(step for name in names if (step := step_of(name)) is not None)
