"""`distrain checkpoint list`: what a run has saved, told without torch."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distrain.config import CheckpointConfig
from distrain.coordinator.checkpoint_listing import (
    ListedCheckpoint,
    kept_by,
    listed_checkpoints,
)
from distrain.coordinator.run_layout import JOB
from distrain.coordinator.stored_checkpoints import store_of_run
from distrain.job_file import read_checkpoint_section
from launch.readable import size_text


def show(run: Path, *, as_json: bool) -> None:
    """Lists a run's checkpoints, oldest first; nothing is verified.

    Raises:
        UsageError: there is no run in the folder.
        ConfigError: its job.toml can't be read, or names a place that is not there.
        StorageError: the place gives no answer.
    """
    store = store_of_run(run)
    listed = listed_checkpoints(store)
    policy = policy_of(run)
    kept: Mapping[int, Sequence[str]] = {}
    if policy is not None:
        kept = kept_by(policy, [one.step for one in listed], _best(policy, listed))
    damaged = store.kept_aside()
    if as_json:
        found = {
            "checkpoints": [_plain(one, kept.get(one.step)) for one in listed],
            "damaged": [f"{store.where}/{name}" for name in damaged],
        }
        print(json.dumps(found, indent=2))
        return
    console = Console(highlight=False, markup=False)
    if listed:
        console.print(_table(listed, kept, policy))
    else:
        print(f"no checkpoint yet in {store.where}")
    for one in listed:
        if one.problem:
            print(f"step {one.step}: {one.problem}")
    if damaged:
        print(f"found damaged and set aside by the run: {', '.join(damaged)}")


def policy_of(run: Path) -> CheckpointConfig | None:
    """How a run saves, as its job.toml says; None where that says nothing of it.

    Raises:
        ConfigError: it can't be read.
    """
    return read_checkpoint_section(run / JOB) if (run / JOB).exists() else None


def _best(policy: CheckpointConfig, listed: Sequence[ListedCheckpoint]) -> Collection[int]:
    """The steps of the best epochs' ends, as the newest checkpoint knows them."""
    newest = next((one for one in reversed(listed) if one.run), None)
    if not policy.keep_best or newest is None:
        return ()
    # Of torch's weight, and needed where the best are kept alone.
    from distrain.coordinator.checkpointing import Checkpoint, best_steps  # noqa: PLC0415
    from distrain.coordinator.run_state import RunState  # noqa: PLC0415

    return best_steps(Checkpoint(**asdict(policy)), RunState.from_json(newest.run).epochs)


def _plain(one: ListedCheckpoint, kept: Sequence[str] | None) -> dict[str, Any]:
    return {
        "step": one.step,
        "epoch": one.epoch,
        "ends_epoch": one.ends_epoch,
        "bytes": one.size_bytes,
        "written": None if one.written is None else _moment(one.written).isoformat(),
        "kept_by": kept,
        "scores": one.scores,
        "path": one.path,
        "problem": one.problem or None,
    }


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(round(seconds), UTC)


def _table(
    listed: Sequence[ListedCheckpoint],
    kept: Mapping[int, Sequence[str]],
    policy: CheckpointConfig | None,
) -> Table:
    """As wide as the terminal; what keeps a checkpoint is folded where that is narrow."""
    score = _shown_score(listed, policy)
    table = Table(box=None, pad_edge=False)
    for title in ("step", "epoch", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("written", no_wrap=True)
    if score is not None:
        table.add_column(score, justify="right", overflow="fold")
    if kept:
        table.add_column("kept as", overflow="fold")
    for one in listed:
        cells = [
            f"{one.step:,}",
            "?" if one.epoch is None else f"{one.epoch} end" if one.ends_epoch else f"{one.epoch}",
            size_text(one.size_bytes),
            "?" if one.written is None else f"{_moment(one.written).astimezone():%m-%d %H:%M}",
        ]
        if score is not None:
            value = one.scores.get(score, math.nan)
            cells.append(f"{math.nan if value is None else value:.4f}" if one.scores else "")
        if kept:
            cells.append(", ".join(kept.get(one.step, ())) or "-")
        table.add_row(*cells)
    return table


def _shown_score(listed: Sequence[ListedCheckpoint], policy: CheckpointConfig | None) -> str | None:
    """What is monitored, else the loss; None where no epoch has ended in any of them."""
    measured = {name for one in listed for name in one.scores}
    wanted = ([policy.monitor] if policy is not None else []) + ["val_loss", "loss"]
    return next((name for name in wanted if name in measured), None)
