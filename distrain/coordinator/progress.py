"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from distrain.coordinator.observers import Ending, EpochRecord, skipped_text
from distrain.coordinator.score_lines import INDENT, score_lines
from distrain.coordinator.terminal import drawn_on, lasting
from distrain.parallel.split import BatchPlan
from distrain.step import StepResult

REFRESH_PER_S = 4
_NO_NEWS = ("checkpoint", "phases", "hang", "restart")
"""Events that are for the log; of a hang the launcher has told."""

LINE_EVERY_S = 10.0
"""On no terminal, a line is due after this long within an epoch."""


def say(text: str) -> None:
    """Prints; where nobody reads any more (`| head`, a full disk), the run goes on unseen."""
    try:
        print(text, flush=True)
    except OSError:
        # What is still buffered would raise again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def score_text(scores: Mapping[str, float]) -> str:
    """Scores on one line: `loss 0.1234, accuracy 0.9712`."""
    return ", ".join(f"{name} {score:.4f}" for name, score in scores.items())


def summary_lines(
    reason: str,
    epochs: Sequence[EpochRecord],
    best: int | None,
    seconds: float,
    num_workers: int,
    *,
    restored: bool,
) -> list[str]:
    """How a run ended; `restored` says that its result is the best epoch's weights."""
    last = epochs[-1]
    workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
    lines = [
        f"{reason} after epoch {last.epoch}, {last.step} steps, {seconds:.1f} s, {workers}",
        *(INDENT + line for line in score_lines(last.scores)),
    ]
    if best is not None and best != last.epoch:
        lines.append(f"best was epoch {best}" + (", whose weights are restored" * restored))
        lines += [INDENT + line for line in score_lines(epochs[best - 1].scores)]
    return lines


class ProgressBar:
    """Epoch, step, loss, newest score, samples a second and time left, on one line."""

    def __init__(self, console: Console, *, says: Callable[[str], None] | None = None) -> None:
        """Draws on a terminal; the line is shortened for one under 80 columns.

        `says` shows other lines, where that terminal is not standard output.
        """
        self._say = says or partial(console.print, highlight=False)
        wide = console.width >= 80
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None if wide else 8),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[now]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=REFRESH_PER_S,
            expand=wide,
            redirect_stdout=says is None,
            redirect_stderr=says is None,
        )
        self._wide = wide
        self._task = TaskID(0)
        self._epochs = 0
        self._samples, self._since = 0, time.monotonic()
        self._score = ""

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """Starts drawing."""
        self._epochs = epochs
        total = epochs * plan.steps_per_epoch
        self._task = self._bar.add_task(f"epoch 1/{epochs}", total=total, now="")
        self._bar.start()
        self._since = time.monotonic()

    def step(self, result: StepResult) -> None:
        """Moves the bar; a step that was skipped gets a line above it."""
        if text := skipped_text(result):
            self._say(text)
        self._samples += result.totals.num_samples
        rate = self._samples / max(time.monotonic() - self._since, 1e-9)
        now = f"loss {result.totals.loss:.4f}"
        if self._wide:
            now += f"{self._score} {rate:,.0f}/s"
        self._bar.update(
            self._task,
            completed=result.batch.step + 1,
            description=f"epoch {result.batch.epoch + 1}/{self._epochs}",
            now=now,
        )

    def epoch(self, record: EpochRecord) -> None:
        """Shows the first metric on the validation set, or what comes next to it, from now on."""
        metrics = [name for name in record.scores if name not in ("loss", "val_loss")]
        measured = [name for name in metrics if name.startswith("val_")] or metrics or ["val_loss"]
        if measured[0] in record.scores:
            self._score = f" {measured[0]} {record.scores[measured[0]]:.4f}"
        self._samples, self._since = 0, time.monotonic()

    def note(self, event: str, text: str, **fields: Any) -> None:  # noqa: ARG002 - for programs
        """A line above the bar; checkpoints that went well are no news."""
        if event not in _NO_NEWS:
            self._say(text)

    def end(self, ending: Ending) -> None:  # noqa: ARG002 - an observer is told how it ended
        """Takes the bar away."""
        self._bar.stop()


class PlainLines:
    """A line an epoch, and one every ten seconds within a long one."""

    def __init__(self) -> None:
        """Writes to standard output."""
        self._epochs = self._steps = 0
        self._last = time.monotonic()

    def begin(self, plan: BatchPlan, epochs: int) -> None:
        """Says what is ahead."""
        self._epochs, self._steps = epochs, epochs * plan.steps_per_epoch
        micro_batches = f"{plan.num_micro_batches} micro-batches of {plan.micro_batch}"
        self._say(
            f"{plan.num_rows:,} rows, {epochs} epochs of {plan.steps_per_epoch} steps, "
            f"global batch {plan.global_batch} = {micro_batches}"
        )

    def step(self, result: StepResult) -> None:
        """A line, if the last is long ago, or the step was skipped."""
        if text := skipped_text(result):
            self._say(text)
        if time.monotonic() - self._last > LINE_EVERY_S:
            self._say(
                f"epoch {result.batch.epoch + 1}/{self._epochs}: step {result.batch.step + 1}/"
                f"{self._steps}, loss {result.totals.loss:.4f}"
            )

    def epoch(self, record: EpochRecord) -> None:
        """The epoch's scores."""
        # A run that goes on after an epoch's last step has trained on nothing before its scores.
        speed = f" ({record.samples_per_s:,.0f} samples/s)" if record.samples_per_s else ""
        self._say(f"epoch {record.epoch}/{self._epochs}: {score_text(record.scores)}{speed}")

    def note(self, event: str, text: str, **fields: Any) -> None:  # noqa: ARG002 - for programs
        """A line; checkpoints that went well are no news."""
        if event not in _NO_NEWS:
            self._say(text)

    def end(self, ending: Ending) -> None:
        """The summary is the caller's."""

    def _say(self, line: str) -> None:
        say(line)
        self._last = time.monotonic()


def progress_observer() -> ProgressBar | PlainLines:
    """A bar where standard output is a terminal, or goes to one; plain lines elsewhere."""
    terminal = drawn_on()
    if terminal is not None:
        return ProgressBar(_Terminal(terminal), says=say)
    console = Console(file=lasting(sys.stdout))
    return ProgressBar(console) if console.is_terminal else PlainLines()


class _Terminal(Console):
    """As wide as the terminal is now: rich asks the standard streams, which are pipes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        super().__init__(file=lasting(os.fdopen(descriptor, "w", closefd=False)))

    @property  # type: ignore[misc]  # rich's can be set, which nobody does here
    def size(self) -> ConsoleDimensions:
        if "COLUMNS" in os.environ:
            return super().size
        try:
            columns, lines = os.get_terminal_size(self._descriptor)
        except OSError:  # it was closed
            columns, lines = 0, 0
        return ConsoleDimensions(columns or 80, lines or 25)
