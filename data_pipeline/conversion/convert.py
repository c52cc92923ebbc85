"""`convert`: files of any known kind to a data set."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from data_pipeline.conversion.options import Options, Progress, Report
from data_pipeline.conversion.parts import Split
from data_pipeline.conversion.passes import convert_source
from data_pipeline.errors import DataError
from data_pipeline.sources.detect import open_source
from data_pipeline.sources.source import Reading, Source


def convert(
    source: str | Path | Source,
    folder: str | Path,
    *,
    kind: str | None = None,
    reading: Reading | None = None,
    split: Mapping[str, float] | None = None,
    split_by: str | None = None,
    stratify: bool = False,
    workers: int = 1,
    skip_bad: int = 0,
    rows_per_shard: int | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Writes files, or a source of one's own, as a data set that is there whole or not at all.

    The bytes depend on the source and the options, not on `workers`. Broken off, whatever the
    reason, it is taken up again by the same call. Several workers are processes of their own: the
    call then has to stand under `if __name__ == "__main__":`.

    Args:
        source: A path, or an object as `data_pipeline.sources.source.Source` describes.
        folder: Where the data set goes; it must not exist, or be empty.
        kind: One of `data_pipeline.sources.detect.KINDS`; detected unless given.
        reading: How a path is read.
        split: By part, its share, such as {"validation": 0.1}; the rest is `train`. A row's part
            follows from its content, so that rows which are added move no other. Where the source
            has parts of its own, the shares are taken of its `train`.
        split_by: The column whose values are the parts' names, instead; it is left out.
        stratify: Give each class of the label its exact share, by the rank of its contents'
            hashes; rows of equal inputs stay together, and those near the border may move when
            others are added.
        workers: Processes that read and write.
        skip_bad: So many rows that cannot be read may be left out; the report names them.
        rows_per_shard: Shards of about 64 MiB unless given.
        progress: Called with what is being done, how much of it is done, how much there is.
        tell: Called with a line when work under other options or versions is thrown away.

    Raises:
        DataError: the source cannot be read or be made into a data set, or the folder exists.
        StorageError: the folder cannot be written; what is finished is kept beside it.
        LostProcessError: a worker was killed; what is finished is kept beside the folder.
    """
    destination = Path(folder)
    chosen = reading or Reading()
    if split_by is not None:
        chosen = replace(chosen, split_by=split_by)
    options = Options(
        reading=chosen,
        split=Split(fractions=dict(split or {}), by=split_by, stratify=stratify),
        rows_per_shard=rows_per_shard,
        workers=workers,
        skip_bad=skip_bad,
        progress=progress,
        tell=tell,
    )
    options.check()
    if isinstance(source, (str, Path)):
        path = Path(source)
        if destination.resolve().is_relative_to(path.resolve()):
            raise DataError(
                f"{destination} lies in the source {path}: name a destination outside of it"
            )
        source = open_source(path, chosen, kind)
    return convert_source(source, destination, options)
