"""Writes a data set: its parts as Arrow shards, its statistics, its manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.conversion.parts import check_part_name
from data_pipeline.durable import new_folder
from data_pipeline.errors import DataError
from data_pipeline.manifest import Column, ColumnStatistics, Manifest, Part, write_manifest
from data_pipeline.ragged import Ragged
from data_pipeline.shards import SHARD_BYTES, Values, check_rows, write_shard
from data_pipeline.statistics import column_statistics


def write_dataset(
    folder: str | Path,
    name: str,
    columns: Sequence[Column],
    parts: Mapping[str, Mapping[str, Values]],
    *,
    rows_per_shard: int | None = None,
) -> Manifest:
    """Writes arrays `(N, *shape)` by part and column as a data set that is there whole or not.

    Rows of differing length come as `Ragged`, and the greatest length is found here. Statistics
    are those of the part `train` (of the first part, where none is called so).

    Raises:
        DataError: the folder exists, a part has no rows or a name that no folder can have, arrays
            are not as the columns say, a value is not finite or a label outside of its classes.
        StorageError: the folder cannot be written.
    """
    described = tuple(columns)
    if not parts:
        raise DataError(f"{name}: a data set needs at least one part")
    statistics = {part: _checked(part, described, rows) for part, rows in parts.items()}
    described = tuple(_with_length(column, list(parts.values())) for column in described)
    if rows_per_shard is not None and rows_per_shard < 1:
        raise DataError(f"rows_per_shard is {rows_per_shard}; it must be 1 or more")
    with new_folder(Path(folder)) as aside:
        written = {
            part: _write_part(aside, part, described, rows, rows_per_shard)
            for part, rows in parts.items()
        }
        manifest = Manifest(
            name=name,
            columns=described,
            parts=written,
            statistics=statistics.get("train", next(iter(statistics.values()))),
        )
        write_manifest(aside, manifest)
    return manifest


def _checked(
    part: str, columns: tuple[Column, ...], rows: Mapping[str, Values]
) -> dict[str, ColumnStatistics]:
    """The statistics of a part that can be written."""
    check_part_name(part)
    names = [column.name for column in columns]
    if len(set(names)) != len(names) or set(names) != set(rows):
        raise DataError(f"part {part!r} has the columns {list(rows)}, but {names} are declared")
    lengths = {name: len(rows[name]) for name in names}
    if len(set(lengths.values())) != 1:
        raise DataError(f"part {part!r}: columns differ in rows: {lengths}")
    if not all(lengths.values()):
        raise DataError(f"part {part!r} is empty: every part needs at least one row")
    try:
        for column in columns:
            check_rows(column, rows[column.name])
        return {column.name: column_statistics(column, rows[column.name]) for column in columns}
    except DataError as error:
        raise DataError(f"part {part!r}: {error}") from error


def _with_length(column: Column, parts: Sequence[Mapping[str, Values]]) -> Column:
    if column.kind not in ("sequence", "text"):
        return column
    ragged = [values for rows in parts if isinstance(values := rows[column.name], Ragged)]
    return replace(column, max_length=max(int(rows.lengths.max()) for rows in ragged))


def _cut(values: Values, start: int, stop: int) -> Values:
    return values.slice(start, stop) if isinstance(values, Ragged) else values[start:stop]


def _write_part(
    root: Path,
    part: str,
    columns: tuple[Column, ...],
    rows: Mapping[str, Values],
    rows_per_shard: int | None,
) -> Part:
    num_rows = len(rows[columns[0].name])
    if rows_per_shard is None:
        row_bytes = sum(rows[column.name].nbytes for column in columns) / num_rows
        rows_per_shard = max(1, int(SHARD_BYTES / row_bytes))
    cuts = range(0, num_rows, rows_per_shard)
    return Part(
        shards=tuple(
            write_shard(
                root,
                f"{part}/{number:05d}.arrow",
                columns,
                {
                    key: _cut(values, start, min(start + rows_per_shard, num_rows))
                    for key, values in rows.items()
                },
            )
            for number, start in enumerate(cuts)
        )
    )
