"""Why workers were started again: left by their launcher, for the run's log."""

import json
from pathlib import Path
from typing import Any

_NAME = "restart.json"


def leave_restart(folder: Path, text: str, **fields: Any) -> None:
    """Leaves the cause in words, and what else is known of it, for the next start's rank 0."""
    (folder / _NAME).write_text(json.dumps({"text": text, **fields}))


def told_restart(folder: Path | None) -> dict[str, Any] | None:
    """What was left there, which is gone then; None where this is no restart."""
    path = None if folder is None else folder / _NAME
    if path is None or not path.exists():
        return None
    said: dict[str, Any] = json.loads(path.read_bytes())
    path.unlink()
    return said
