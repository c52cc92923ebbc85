"""Which kind of source a path is."""

import importlib
from pathlib import Path
from types import ModuleType

from data_pipeline.errors import DataError
from data_pipeline.sources.source import Reading, Source

KINDS = {
    "hugging-face": "hugging_face",
    "cifar": "cifar",
    "idx": "idx",
    "numpy": "numpy_files",
    "images": "image_folder",
    "csv": "csv_files",
    "parquet": "parquet",
    "json-lines": "json_lines",
    "arrow": "arrow_files",
}
"""By name, the module of each kind, the narrower ones first."""


def open_source(path: Path, reading: Reading, kind: str | None = None) -> Source:
    """The source at a path, its kind detected unless named.

    Raises:
        DataError: there is nothing, or nothing that is known; or it cannot be read.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"there is no kind of source {kind!r}; there are {', '.join(KINDS)}")
    if not path.exists():
        raise DataError(f"there is no {path} to convert")
    if path.is_dir() and not any(path.iterdir()):
        raise DataError(f"{path} is an empty folder: there is nothing to convert")
    if kind is None:
        kind = next((name for name in KINDS if _module(name).matches(path)), None)
    if kind is None:
        raise DataError(
            f"{path} is of no kind that is known: name one with --kind; there are "
            f"{', '.join(KINDS)}"
        )
    source: Source = _module(kind).open_source(path, reading)
    return source


def _module(kind: str) -> ModuleType:
    # A kind's libraries are imported for it alone.
    return importlib.import_module(f"data_pipeline.sources.{KINDS[kind]}")
