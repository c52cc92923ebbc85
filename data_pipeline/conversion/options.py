"""What is asked of a conversion, and what it says of what it did."""

from collections.abc import Callable
from dataclasses import dataclass, field

from data_pipeline.conversion.parts import Split
from data_pipeline.errors import DataError
from data_pipeline.sources.source import Reading

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a conversion did.

    Attributes:
        rows: By part.
        classes: By label column.
        duplicates_within: Rows that repeat the inputs of an earlier row of their part.
        duplicates_across: Rows that repeat the inputs of an earlier row of another part.
        named_duplicates: The first few of these: row and earlier row, each with its part.
        skipped: What was wrong with each row that was left out.
        digest: Of the manifest.
    """

    rows: dict[str, int]
    classes: dict[str, tuple[str, ...]]
    duplicates_within: int = 0
    duplicates_across: int = 0
    named_duplicates: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a source is made into a data set.

    Attributes:
        reading: How the source is read; its label is what a stratified split goes by.
        split: How rows come to their parts.
        rows_per_shard: Rows of a shard; shards of about 64 MiB unless given.
        workers: Processes; the result does not depend on it.
        skip_bad: So many rows may be left out because they cannot be read.
        progress: Told how the work goes on.
        tell: Given a line when something is worth knowing.
    """

    reading: Reading = field(default_factory=Reading)
    split: Split = field(default_factory=Split)
    rows_per_shard: int | None = None
    workers: int = 1
    skip_bad: int = 0
    progress: Progress | None = None
    tell: Callable[[str], None] | None = None

    @property
    def missing_allowed(self) -> bool:
        """Whether NaN is kept."""
        return self.reading.missing == "keep"

    def check(self) -> None:
        """Refuses what cannot be followed.

        Raises:
            DataError: a number is out of its range, or the split cannot be followed.
        """
        self.split.check()
        for name, given, least in (
            ("rows_per_shard", self.rows_per_shard, 1),
            ("workers", self.workers, 1),
            ("skip_bad", self.skip_bad, 0),
        ):
            if given is not None and given < least:
                raise DataError(f"{name} is {given}; it must be {least} or more")
