"""`distrain data convert`: progress on a terminal, and a summary at the end."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import data_pipeline.conversion.convert as conversion
from data_pipeline.conversion.options import Progress as Told
from data_pipeline.conversion.options import Report
from data_pipeline.errors import LostProcessError
from data_pipeline.sources.source import Reading
from distrain.errors import ExitCode
from launch.failure import Cause

_NAMED = 5
_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The options of the command."""

    kind: str | None
    size: tuple[int, int] | None
    label: str | None
    image: str | None
    types: Mapping[str, str]
    stack: Mapping[str, tuple[str, ...]]
    split: Mapping[str, float]
    split_by: str | None
    stratify: bool
    workers: int
    skip_bad: int
    missing: Literal["refuse", "keep"]
    rows_per_shard: int | None


def convert(source: Path, folder: Path, asked: Asked) -> Cause | None:
    """Converts, shows how it goes on, and says what was written."""
    started = time.monotonic()
    reading = Reading(
        size=asked.size,
        label=asked.label,
        image=asked.image,
        types=asked.types,
        stack=asked.stack,
        missing=asked.missing,
    )
    try:
        with _shown() as progress:
            report = conversion.convert(
                source,
                folder,
                kind=asked.kind,
                reading=reading,
                split=asked.split,
                split_by=asked.split_by,
                stratify=asked.stratify,
                workers=asked.workers,
                skip_bad=asked.skip_bad,
                rows_per_shard=asked.rows_per_shard,
                progress=progress,
                tell=lambda line: print(line, file=sys.stderr),
            )
    except LostProcessError as error:
        return Cause(0, ExitCode.WORKER_LOST, str(error))
    except KeyboardInterrupt:
        partial = folder.absolute().with_name(f".{folder.absolute().name}.partial")
        return Cause(
            0,
            ExitCode.STOPPED,
            f"stopped; what is finished is kept in {partial}: run the same command again to go "
            "on, or remove that folder",
        )
    for line in summary(source, folder, report, time.monotonic() - started):
        print(line)
    return None


def summary(source: Path, folder: Path, report: Report, seconds: float) -> Iterator[str]:
    """What was written, line by line."""
    parts = ", ".join(f"{rows:,} rows for {part}" for part, rows in report.rows.items())
    yield f"wrote {source} to {folder} in {seconds:.1f} s: {parts}"
    for name, classes in report.classes.items():
        more = f", and {len(classes) - _CLASSES:,} more" if len(classes) > _CLASSES else ""
        yield f"{name}: {len(classes):,} classes: {', '.join(classes[:_CLASSES])}{more}"
    if report.duplicates_within:
        yield (
            f"{report.duplicates_within:,} rows repeat the inputs of an earlier row of their part"
        )
    if report.duplicates_across:
        yield f"{report.duplicates_across:,} rows repeat the inputs of a row of another part:"
        yield from _some(report.named_duplicates, report.duplicates_across)
    if report.skipped:
        yield f"{len(report.skipped):,} rows were left out:"
        yield from _some(report.skipped, len(report.skipped))


def _some(lines: list[str], total: int) -> Iterator[str]:
    for line in lines[:_NAMED]:
        yield f"  {line}"
    if total > _NAMED:
        yield f"  and {total - _NAMED:,} more"


@contextmanager
def _shown() -> Iterator[Told | None]:
    """A progress bar where somebody looks at it."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks = {what: bar.add_task(what, total=None) for what in ("reading", "writing")}

        def progress(what: str, done: int, total: int) -> None:
            bar.update(tasks[what], completed=done, total=total)

        yield progress
