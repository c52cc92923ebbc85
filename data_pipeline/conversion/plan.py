"""The plan of a conversion: a digest of all that its result depends on."""

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, runtime_checkable

from data_pipeline.conversion.options import Options
from data_pipeline.conversion.workplace import encoded
from data_pipeline.errors import DataError
from data_pipeline.sources.source import Source

_FORMAT = 2
"""Changes with what staged files and keys look like."""

_PACKAGES = ("distrain", "numpy", "pillow", "pyarrow", "simplejpeg")
"""What reads and writes: another version of one may give other values or bytes."""


@runtime_checkable
class NamesFiles(Protocol):
    """A source whose rows name files that are read as well, besides those of its pieces."""

    def named_files(self) -> Iterable[Path]:
        """These files, in order; some may be missing."""
        ...


def plan_of(source: Source, options: Options) -> str:
    """The digest of the source, its files' sizes and times, the options and the versions.

    Raises:
        DataError: a file of the source is missing.
    """
    digest = hashlib.sha256()
    pieces = source.pieces
    for entry in (
        _FORMAT,
        versions(),
        type(source).__qualname__,
        source.columns,
        [(piece.name, piece.part, piece.start, piece.stop) for piece in pieces],
        (options.reading, options.split, options.rows_per_shard),
        list(options.split.fractions.items()),  # their order counts, and an object has none
    ):
        try:
            digest.update(encoded(entry))
        except UnicodeEncodeError as error:
            raise DataError(
                f"a name in the source is not UTF-8: {error.object[-80:]!a}: rename the file"
            ) from error
    files = {file for piece in pieces for file in piece.files}
    if not files:
        digest.update(repr(source).encode())
    for file in sorted(files):
        try:
            digest.update(_state(file))
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if isinstance(source, NamesFiles):
        for file in source.named_files():
            try:
                digest.update(_state(file))
            except OSError:  # its row is left out, or refused, once it is read
                digest.update(encoded([str(file.absolute())]))
    return digest.hexdigest()


def versions() -> dict[str, str | None]:
    """The versions of the packages that read and write; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _state(file: Path) -> bytes:
    found = file.stat()
    return encoded([str(file.absolute()), found.st_size, found.st_mtime_ns])
