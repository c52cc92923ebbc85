"""`distrain data`: make, inspect, verify."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_pipeline.manifest import Column, ColumnStatistics, Manifest, read_manifest
from data_pipeline.shards import map_shard, verify_shard

_SHOWN = 4


def make(
    name: str, folder: Path, *, validation_fraction: float, seed: int, rows_per_shard: int | None
) -> None:
    """Writes a bundled data set and says what was written."""
    from data_pipeline.sources.bundled import make_bundled  # noqa: PLC0415 - scikit-learn takes 1 s

    manifest = make_bundled(
        name,
        folder,
        validation_fraction=validation_fraction,
        seed=seed,
        rows_per_shard=rows_per_shard,
    )
    parts = ", ".join(f"{part.rows:,} rows for {title}" for title, part in manifest.parts.items())
    print(f"wrote {name} to {folder}: {parts}")


def inspect(folder: Path) -> None:
    """Prints what a data set holds."""
    manifest = read_manifest(folder)
    console = Console(highlight=False)
    console.print(f"{manifest.name} in {folder}, digest {manifest.digest[:16]}", soft_wrap=True)
    console.print(_parts_table(manifest))
    console.print(_columns_table(manifest))


def _parts_table(manifest: Manifest) -> Table:
    table = Table(title="parts", title_justify="left")
    for heading in ("part", "rows", "shards", "bytes"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for name, part in manifest.parts.items():
        size = sum(shard.size_bytes for shard in part.shards)
        table.add_row(name, f"{part.rows:,}", f"{len(part.shards):,}", f"{size:,}")
    return table


def _columns_table(manifest: Manifest) -> Table:
    table = Table(title="columns (statistics of the training part)", title_justify="left")
    for heading in ("column", "kind", "type", "values"):
        table.add_column(heading, overflow="fold")
    for column in manifest.columns:
        shape = f" {'x'.join(map(str, column.shape))}" if column.shape else ""
        statistics = manifest.statistics.get(column.name)
        values = "" if statistics is None else _values(column, statistics)
        table.add_row(column.name, column.kind, f"{column.dtype}{shape}", values)
    return table


def _values(column: Column, statistics: ColumnStatistics) -> str:
    if column.kind == "label":
        counts = zip(column.classes, statistics.label_counts, strict=True)
        return ", ".join(f"{name}: {count:,}" for name, count in counts)
    pairs = [
        f"{mean:.4g} ± {std:.4g}" for mean, std in zip(statistics.mean, statistics.std, strict=True)
    ]
    more = f", and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return ", ".join(pairs[:_SHOWN]) + more


def verify(folder: Path) -> None:
    """Checks every shard's digest.

    Raises:
        DataError: a shard is missing or damaged.
    """
    manifest = read_manifest(folder)
    shards = [shard for part in manifest.parts.values() for shard in part.shards]
    for shard in shards:
        verify_shard(folder, shard)
        map_shard(folder, shard, manifest.columns)
    rows = sum(shard.rows for shard in shards)
    print(f"{folder}: all {len(shards)} shards are as the manifest says ({rows:,} rows)")
