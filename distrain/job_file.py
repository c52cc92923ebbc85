"""Job files: TOML to a checked `Job`, overrides from the command line, and back to TOML."""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import tomli_w

from distrain.config import Job, near_names
from distrain.errors import ConfigError, UsageError

IDENTITY = "identity"
"""A section that runs write into their own job.toml; it describes, and is not read as a setting."""


def read_job(path: Path) -> Job:
    """Reads a job file; `run.dir` becomes runs/NAME where the file NAME.toml gives none.

    Raises:
        UsageError: there is no such file.
        ConfigError: it is no TOML, has an unknown field, or a field of a wrong type or value.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no job file {path}: name a TOML file, such as examples/digits.toml"
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    raw.pop(IDENTITY, None)
    try:
        job = job_from_mapping(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if job.run.dir is None:
        job = dataclasses.replace(job, run=dataclasses.replace(job.run, dir=f"runs/{path.stem}"))
    return job


def job_from_mapping(raw: Mapping[str, Any]) -> Job:
    """A checked job from nested tables.

    Raises:
        ConfigError: a field is unknown (near names are given), missing, or of a wrong type.
    """
    _refuse_unknown(raw, Job, "")
    try:
        return msgspec.convert(raw, Job, strict=True)
    except msgspec.ValidationError as error:
        message = str(error).replace("`$.", "`").replace(" - at ", ", at ")
        raise ConfigError(message) from error


def _refuse_unknown(raw: Mapping[str, Any], described: type, prefix: str) -> None:
    types = get_type_hints(described)
    for name, value in raw.items():
        if name not in types:
            raise ConfigError(f"unknown field {prefix}{name}: {near_names(name, types)}")
        if dataclasses.is_dataclass(types[name]) and isinstance(value, Mapping):
            _refuse_unknown(value, types[name], f"{prefix}{name}.")


def override(job: Job, arguments: Sequence[str], *, prog: str) -> Job:
    """The job with `--section.field VALUE` arguments applied; `--help` prints all fields.

    Raises:
        UsageError: an argument is unknown or its value is of a wrong type.
        SystemExit: with 0, after `--help`.
    """
    import tyro  # noqa: PLC0415 - 0.1 s that only a command line with overrides has to pay

    said = StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(Job, default=job, args=list(arguments), prog=prog)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UsageError(f"the arguments do not fit the job:\n{said.getvalue().strip()}") from None


def job_tables(job: Job) -> dict[str, Any]:
    """The job as nested tables of plain values, fields that are None left out (TOML has none)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items() if item is not None}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    tables: dict[str, Any] = plain(dataclasses.asdict(job))
    return tables


def job_toml(tables: Mapping[str, Any]) -> bytes:
    """The tables as a TOML file's bytes."""
    return tomli_w.dumps(tables).encode()
