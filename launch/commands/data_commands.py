"""`distrain data`: make, inspect, verify; conversion has a room of its own."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from data_pipeline.manifest import Column, ColumnStatistics, Manifest, read_manifest
from data_pipeline.verify import verify_folder

_SHOWN = 4
_CLASSES = 20


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
        statistics = manifest.statistics.get(column.name)
        values = "" if statistics is None else _values(column, statistics)
        table.add_row(column.name, column.kind, _type(column), values)
    return table


def _type(column: Column) -> str:
    """What a row holds, such as `uint8 3x32x32`, or `float32 of up to 90x2` for a sequence."""
    if column.kind == "image":
        return {1: "grey", 3: "colour"}[column.shape[0]]
    if column.kind == "text":
        return f"up to {column.max_length:,} bytes"
    sizes = "x".join(map(str, column.shape))
    if column.kind == "sequence":
        steps = f"up to {column.max_length:,}"
        return f"{column.dtype}, {steps} x {sizes}" if sizes else f"{column.dtype}, {steps}"
    return f"{column.dtype} {sizes}" if sizes else column.dtype


def _values(column: Column, statistics: ColumnStatistics) -> str:
    if column.kind == "label":
        counts = list(zip(column.classes, statistics.label_counts, strict=True))
        more = f", and {len(counts) - _CLASSES:,} more classes" if len(counts) > _CLASSES else ""
        return ", ".join(f"{name}: {count:,}" for name, count in counts[:_CLASSES]) + more
    if column.kind == "text":
        return f"{statistics.count:,} texts"
    entries = zip(
        statistics.mean, statistics.std, statistics.least, statistics.greatest, strict=True
    )
    pairs = [
        f"{mean:.4g} ± {std:.4g} in [{least:.4g}, {greatest:.4g}]"
        for mean, std, least, greatest in entries
    ]
    more = f", and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    missing = f", {statistics.missing:,} missing" if statistics.missing else ""
    return ", ".join(pairs[:_SHOWN]) + more + missing


def verify(folder: Path) -> None:
    """Checks every file's digest.

    Raises:
        DataError: a file is damaged, missing or one too many.
    """
    found = verify_folder(folder)
    print(f"{folder}: all {found.shards} shards are as the manifest says ({found.rows:,} rows)")
