"""Job files: TOML to a checked `Job`, overrides from the command line, and back to TOML."""

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import tomli_w

from distrain.checks import near_names
from distrain.config import CheckpointConfig, Job
from distrain.errors import ConfigError, UsageError

NONE = "none"

CHECKPOINT = "checkpoint"

IDENTITY = "identity"
"""A section that runs write into their own job.toml; it describes, and is not read as a setting."""

_MOST_SHOWN = 300


def read_job(path: Path) -> Job:
    """Reads a job file; `run.dir` becomes runs/NAME where the file NAME.toml gives none.

    Raises:
        UsageError: there is no such file, or it can't be read.
        ConfigError: it is no TOML, has an unknown field, or a field of a wrong type or value.
    """
    raw = _read_tables(path)
    raw.pop(IDENTITY, None)
    try:
        job = job_from_mapping(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return with_folder(job, path)


def _read_tables(path: Path) -> dict[str, Any]:
    try:
        if not (path.is_file() or path.is_fifo()):  # such as /dev/stdin
            raise UsageError(
                f"there is no job file {_shown(path)}: name a TOML file, such as "
                "examples/digits.toml"
            )
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the job file {_shown(path)} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _shown(path: Path) -> str:
    """A path as a terminal may be given it."""
    text = str(path)
    if len(text) > _MOST_SHOWN:
        return f"{text[:80]!r}..."
    return text if text.isprintable() else repr(text)


def describes_a_model(path: Path) -> bool:
    """Whether a run's job.toml is a job's; that of a script's run does not say what was built.

    Raises:
        UsageError: there is no such file.
        ConfigError: it is no TOML.
    """
    return "model" in _read_tables(path)


def with_folder(job: Job, path: Path) -> Job:
    """The job with runs/NAME for its folder, where it names none and its file is NAME.toml."""
    if job.run.dir is not None:
        return job
    return dataclasses.replace(job, run=dataclasses.replace(job.run, dir=f"runs/{path.stem}"))


def job_from_mapping(raw: Mapping[str, Any]) -> Job:
    """A checked job from nested tables.

    Raises:
        ConfigError: a field is unknown (near names are given), missing, or of a wrong type.
    """
    _refuse_unknown(raw, Job, "")
    try:
        return msgspec.convert(_with_nones(raw, Job), Job, strict=True)
    except msgspec.ValidationError as error:
        message = str(error).replace("`$.", "`").replace(" - at ", ", at ")
        raise ConfigError(message) from error


def _refuse_unknown(raw: Mapping[str, Any], described: type, prefix: str) -> None:
    types = get_type_hints(described)
    for name, value in raw.items():
        if name not in types:
            raise ConfigError(f"unknown field {prefix}{name}: {near_names(name, types)}")
        for where, table, kind in _sections_within(types[name], value):
            _refuse_unknown(table, kind, ".".join((f"{prefix}{name}", *where, "")))
        allowed = get_args(types[name]) if get_origin(types[name]) is Literal else ()
        if allowed and value not in allowed:
            raise ConfigError(f"{prefix}{name} is {value!r}: {near_names(str(value), allowed)}")


def _sections_within(
    kind: Any, value: object
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], type]]:
    """The sections that a field holds: itself, or several by name, as optimizer.groups does."""
    if not isinstance(value, Mapping):
        return
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        yield (), value, kind
    elif get_origin(kind) is dict and dataclasses.is_dataclass(of := get_args(kind)[1]):
        assert isinstance(of, type)
        for name, table in value.items():
            if isinstance(table, Mapping):
                yield (name,), table, of


def _with_nones(raw: Mapping[str, Any], described: type) -> dict[str, Any]:
    """The tables with "none" read as None, where a field takes that: TOML has no word for it."""
    found: dict[str, Any] = {}
    types = get_type_hints(described)
    for name, value in raw.items():
        kind = types[name]
        found[name] = None if value == NONE and type(None) in get_args(kind) else value
        for where, table, section in _sections_within(kind, value):
            read = _with_nones(table, section)
            found[name] = {**found[name], where[0]: read} if where else read
    return found


def override(job: Job, arguments: Sequence[str], *, prog: str) -> Job:
    """The job with `--section.field VALUE` arguments applied; `--help` prints all fields.

    Raises:
        UsageError: an argument is unknown or its value is of a wrong type.
        SystemExit: with 0, after `--help`.
    """
    if not arguments:
        return job
    import tyro  # noqa: PLC0415 - 0.2 s that only a command line with overrides has to pay

    said = StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(Job, default=job, args=list(arguments), prog=prog)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise UsageError(f"the arguments do not fit the job:\n{said.getvalue().strip()}") from None


def checkpoint_tables(policy: CheckpointConfig) -> dict[str, Any]:
    """The tables of a run that a script has made: of its settings only what tools go by."""
    return {CHECKPOINT: _tables(policy)}


def read_checkpoint_section(path: Path) -> CheckpointConfig | None:
    """What a run's job.toml says of checkpoints; None where it says nothing of them.

    Raises:
        UsageError: there is no such file.
        ConfigError: it is no TOML, or the section is none of this version.
    """
    raw = _read_tables(path).get(CHECKPOINT)
    if raw is None:
        return None
    try:
        _refuse_unknown(raw, CheckpointConfig, f"{CHECKPOINT}.")
        return msgspec.convert(_with_nones(raw, CheckpointConfig), CheckpointConfig, strict=True)
    except (ConfigError, msgspec.ValidationError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: [{CHECKPOINT}] cannot be read: {error}") from error


def job_tables(job: Job) -> dict[str, Any]:
    """The job as nested tables of plain values; a None that is the default is left out."""
    return _tables(job)


def _tables(section: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            found[field.name] = _tables(value)
        elif isinstance(value, dict):
            found[field.name] = {
                name: _tables(inner) if dataclasses.is_dataclass(inner) else inner
                for name, inner in value.items()
            }
        elif value is not None:
            found[field.name] = list(value) if isinstance(value, tuple) else value
        elif field.default is not None:
            found[field.name] = NONE
    return found


def job_toml(tables: Mapping[str, Any]) -> bytes:
    """The tables as a TOML file's bytes."""
    return tomli_w.dumps(tables).encode()
