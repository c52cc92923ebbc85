"""A source read by several processes, and written as a data set that is there whole or not.

    pieces of the source --(pass 1: processes)--> staged rows with keys and origins
    keys                 --(this process)-------> the part of each row, duplicates
    rows of each shard   --(pass 2: processes)--> shards, moments
    moments              --(in shard order)-----> statistics, manifest

Pieces and shards depend on the source and the options alone, so the bytes do not depend on the
number of processes; each is finished by a rename, so a conversion that was broken off goes on.
This process holds some 100 bytes a row while it looks for duplicates.
"""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from data_pipeline.conversion import sharding
from data_pipeline.conversion.index import Index, Indexed, Renumbered, collected, index_of
from data_pipeline.conversion.options import Options, Report
from data_pipeline.conversion.parts import duplicates
from data_pipeline.conversion.plan import plan_of
from data_pipeline.conversion.pool import map_in_order
from data_pipeline.conversion.sharding import Sharding, ShardTask, write_one_shard
from data_pipeline.conversion.staging import Staged, Staging, stage_piece
from data_pipeline.conversion.workplace import Workplace, encoded
from data_pipeline.errors import DataError, LostProcessError, StorageError
from data_pipeline.manifest import (
    FILE_NAME,
    Column,
    Manifest,
    Part,
    Shard,
    check_column,
    read_manifest,
    write_manifest,
)
from data_pipeline.shards import SHARD_BYTES
from data_pipeline.sources.source import Source
from data_pipeline.statistics import Moments

_NAMED = 5
"""So many rows at fault, or duplicates, are named."""


class TooManyBadRowsError(DataError):
    """More rows cannot be read than may be left out."""


def convert_source(
    source: Source, folder: Path, options: Options, *, can_go_on: bool = True
) -> Report:
    """Makes a source into a data set at `folder`.

    Without `can_go_on`, as for rows that come only once, nothing is kept of work broken off.

    Raises:
        DataError: the source cannot be read or be made into a data set, or the folder exists.
        StorageError: the folder cannot be written; what is finished is kept beside it.
        LostProcessError: a process was killed; what is finished is kept.
    """
    options.check()
    # A folder can take the place of another one, but not that of a link.
    workplace = Workplace(folder.resolve() if folder.is_symlink() else folder.absolute())
    if _is_there(folder) and not workplace.folder.exists():
        raise _exists(folder)
    _check_apart(source, folder)
    plan = plan_of(source, options)
    with workplace.held():
        if _is_there(folder):  # another conversion may have finished meanwhile
            return _finished_before(workplace, plan)
        if workplace.prepare(plan) and options.tell is not None:
            options.tell(
                f"{workplace.folder} holds work on another source, or under other options or "
                "versions: it is started anew"
            )
        try:
            report, manifest = _Conversion(source, workplace, options).run()
            shards = (shard.path for part in manifest.parts.values() for shard in part.shards)
            workplace.finish(encoded(report), {FILE_NAME, *shards})
        except (StorageError, LostProcessError, TooManyBadRowsError, KeyboardInterrupt) as error:
            if not can_go_on:
                workplace.remove()
            elif isinstance(error, TooManyBadRowsError):
                raise DataError(f"{error}; what was read is kept in {workplace.folder}") from error
            elif isinstance(error, StorageError):
                raise StorageError(
                    f"{error}; what is finished is kept in {workplace.folder}: make room and run "
                    "the same again, or remove that folder"
                ) from error
            raise
        except Exception:
            workplace.remove()
            raise
        workplace.remove()
    return report


def _is_there(folder: Path) -> bool:
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def _exists(folder: Path) -> DataError:
    return DataError(f"{folder} exists already: name another destination, or remove it first")


def _check_apart(source: Source, folder: Path) -> None:
    """Refuses to write over what is read."""
    destination = folder.resolve()
    for piece in source.pieces:
        for file in piece.files:
            if file.is_relative_to(destination) or file.resolve().is_relative_to(destination):
                raise DataError(f"{folder} holds the source {file}: name another destination")


def _finished_before(workplace: Workplace, plan: str) -> Report:
    """The report of this very conversion, where it was broken off behind its last step."""
    folder, left = workplace.destination, workplace.finished_report(plan)
    if left is not None:
        report = msgspec.json.decode(left, type=Report)
        if read_manifest(folder).digest == report.digest:
            workplace.remove()
            return report
    if not workplace.staged.exists():
        workplace.remove()
    raise _exists(folder)


class _Conversion:
    """One run of the two passes."""

    def __init__(self, source: Source, workplace: Workplace, options: Options) -> None:
        self._workplace, self._options = workplace, options
        self._pieces = tuple(source.pieces)
        split_by = options.split.by
        names = [column.name for column in source.columns]
        if split_by is not None and split_by not in names:
            raise DataError(f"the split goes by column {split_by!r}, but there are {names}")
        columns = tuple(column for column in source.columns if column.name != split_by)
        for column in columns:
            check_column(column)
        if len(set(names)) != len(names):
            raise DataError(f"column names are not unique: {names}")
        if all(column.kind == "label" for column in columns):
            raise DataError(
                f"the columns are {[column.name for column in columns]}: a data set needs at "
                "least one that is no label"
            )
        self._staging = Staging(
            source, workplace.staged, columns, split_by, options.missing_allowed
        )

    def run(self) -> tuple[Report, Manifest]:
        staged = self._stage()
        columns, renumbered = collected(self._staging.columns, staged)
        place, options = self._workplace, self._options
        indexed = Indexed(place.staged, self._pieces, staged, columns, renumbered)
        index = index_of(indexed, options.split, options.reading.label)
        found = duplicates(index.keys, index.part_of, most=_NAMED)
        tasks = self._tasks(staged, index)
        manifest = self._write(columns, renumbered, tasks)
        report = Report(
            rows={name: part.rows for name, part in manifest.parts.items()},
            classes={column.name: column.classes for column in columns if column.kind == "label"},
            duplicates_within=found.within,
            duplicates_across=found.across,
            named_duplicates=[
                " = ".join(index.origin(place.staged, row) for row in pair) for pair in found.named
            ],
            skipped=[message for piece in staged for message in piece.bad],
            digest=manifest.digest,
        )
        return report, manifest

    def _tell(self, what: str, done: int, total: int) -> None:
        if self._options.progress is not None:
            self._options.progress(what, done, total)

    def _stage(self) -> list[Staged]:
        staged: list[Staged] = []
        bad: list[str] = []
        total, most = len(self._pieces), self._options.skip_bad
        self._tell("reading", 0, total)
        results = map_in_order(
            stage_piece,
            self._staging,
            enumerate(self._pieces),
            workers=min(self._options.workers, total),
            lock=self._workplace.shared_file,
        )
        with closing(results):
            for piece in results:
                staged.append(piece)
                bad.extend(piece.bad)
                if len(bad) > most:
                    raise TooManyBadRowsError(_too_many(bad, most))
                self._tell("reading", len(staged), total)
        if not any(piece.rows for piece in staged):
            raise DataError("the source has no rows: a data set needs at least one")
        return staged

    def _tasks(self, staged: Sequence[Staged], index: Index) -> list[ShardTask]:
        """The shards, part by part; the first part with rows is the one that is summed up."""
        size = sum(piece.size_bytes for piece in staged) / len(index.keys)
        per_shard = self._options.rows_per_shard or max(1, int(SHARD_BYTES / max(size, 1.0)))
        tasks: list[ShardTask] = []
        for number, part in enumerate(index.parts):
            rows = index.rows_of(number)
            summed_up = not tasks or tasks[0].part == part
            tasks.extend(
                ShardTask(
                    part=part,
                    path=f"{part}/{shard:05d}.arrow",
                    rows=index.by_piece(rows[start : start + per_shard]),
                    summed_up=summed_up,
                )
                for shard, start in enumerate(range(0, len(rows), per_shard))
            )
        return tasks

    def _write(
        self, columns: tuple[Column, ...], renumbered: Renumbered, tasks: Sequence[ShardTask]
    ) -> Manifest:
        place, options = self._workplace, self._options
        told = Sharding(
            place.staged, place.result, place.marks, columns, renumbered, options.missing_allowed
        )
        shards: dict[str, list[Shard]] = {task.part: [] for task in tasks}
        summed = [Moments.nothing(column) for column in columns]
        self._tell("writing", 0, len(tasks))
        results = map_in_order(
            write_one_shard,
            told,
            tasks,
            workers=min(options.workers, len(tasks)),
            lock=place.shared_file,
        )
        with closing(results), sharding.fresh_maps():
            for done, (shard, moments) in enumerate(results, start=1):
                shards[tasks[done - 1].part].append(shard)
                if moments:
                    summed = [a.merge(b) for a, b in zip(summed, moments, strict=True)]
                self._tell("writing", done, len(tasks))
        manifest = Manifest(
            name=place.destination.name,
            columns=columns,
            parts={name: Part(shards=tuple(found)) for name, found in shards.items()},
            statistics={
                column.name: entry.statistics(column)
                for column, entry in zip(columns, summed, strict=True)
            },
        )
        write_manifest(place.result, manifest)
        return manifest


def _too_many(bad: Sequence[str], most: int) -> str:
    named = "; ".join(bad[:_NAMED])
    more = ", among others" if len(bad) > _NAMED else ""
    allowed = f"only {most} may be left out" if most else "none may be left out"
    return f"{named}{more}: {allowed}; mend them, or allow more with --skip-bad N"
