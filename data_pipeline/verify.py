"""Whether a data set is what was written: every byte of every file, none missing, none more."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import DataError
from data_pipeline.manifest import FILE_NAME, Shard, read_manifest
from data_pipeline.shards import map_shard, verify_shard

_NAMED = 5


@dataclass(frozen=True)
class Verified:
    """What was found in order."""

    shards: int
    rows: int


def verify_folder(folder: str | Path, *, threads: int | None = None) -> Verified:
    """Compares every file with what the manifest says of it, on several threads.

    Raises:
        DataError: a file is damaged, missing or one too many; the first few are named.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    shards = [shard for part in manifest.parts.values() for shard in part.shards]

    def wrong_with(shard: Shard) -> str | None:
        try:
            verify_shard(root, shard)
            map_shard(root, shard, manifest.columns)
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"shard {root / shard.path} cannot be read: {error.strerror or error}"
        return None

    # Hashing releases the interpreter's lock.
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        wrong = [message for message in pool.map(wrong_with, shards) if message is not None]
    wrong.extend(_unlisted(root, {shard.path for shard in shards}))
    if wrong:
        more = f"\nand {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise DataError("\n".join(wrong[:_NAMED]) + more)
    return Verified(len(shards), sum(shard.rows for shard in shards))


def _unlisted(root: Path, listed: set[str]) -> list[str]:
    found = sorted(
        str((Path(folder) / name).relative_to(root))
        for folder, _, names in os.walk(root)
        for name in names
    )
    return [
        f"{root / path} is not in the manifest: take it out of the folder"
        for path in found
        if path not in listed and path != FILE_NAME
    ]
