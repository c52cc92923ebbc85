"""Checkpoints in an object store, through pyarrow.fs: the upload of state.json is the commit.

    PREFIX/RUN_ID/run.json                  whose checkpoints these are, for a person
    PREFIX/RUN_ID/step-000001200/
        model.safetensors, ...              uploaded first
        state.json                          last: before it there is no checkpoint of this step
        damaged.json                        what was state.json, of one that was found damaged

Objects have no rename, and none is needed: a prefix without state.json is a leftover, which nobody
reads. Removal takes state.json first.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from functools import cached_property
from urllib.parse import parse_qsl, urlsplit

import pyarrow
from pyarrow import fs

from data_pipeline.errors import StorageError
from distrain.coordinator.checkpoint_store import (
    ABOUT,
    STATE,
    DamagedCheckpointError,
    ReadableFile,
)
from distrain.coordinator.daemon import begun
from distrain.coordinator.run_layout import folder_name, step_of
from distrain.errors import ConfigError
from distrain.store_address import without_options

DAMAGED = "damaged.json"

IN_FLIGHT_BYTES = 64 * 2**20
"""Of an upload, before it is waited for: pyarrow copies what it sends in the background."""

FIRST_ANSWER_S = 60.0
"""So long the first question of a start may take."""

MOST_TRIES = 3
CONNECT_S, SILENCE_S = 5.0, 10.0
"""Of each request; by itself pyarrow asks a silent store for minutes."""

_GCS_TRIES_S = "30"

_HAS_BUCKETS = ("s3", "gcs")

_WAYS_OUT = (
    (("NO_SUCH_BUCKET", "bucket does not exist"), "make the bucket first, or name another"),
    (
        ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "PERMISSION_DENIED", "status 403"),
        "look at the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, "
        "GOOGLE_APPLICATION_CREDENTIALS) and what they allow: to list, read, write and delete",
    ),
    (
        ("NETWORK_CONNECTION", "UNAVAILABLE", "Could not"),
        "look whether the address and its endpoint_override are right, and reached from here",
    ),
)

Chunks = Iterator[list[memoryview]]


def reason_of(error: BaseException) -> str:
    """What pyarrow says, in short, and what can be done about it."""
    told = " ".join(str(error).split())
    ways = [way for marks, way in _WAYS_OUT if any(mark in told for mark in marks)]
    return "; ".join([told[:400], *ways[:1]])


def object_files(address: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path in it; requests have limits in time.

    Raises:
        ConfigError: pyarrow can't read the address.
        StorageError: what has to be asked for gives no answer.
    """
    parts = urlsplit(address)
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        more = f"retry_limit_seconds={_GCS_TRIES_S}"
        parts = parts._replace(query=f"{parts.query}&{more}" if parts.query else more)
    try:
        files, path = fs.FileSystem.from_uri(parts.geturl())
    except (pyarrow.ArrowException, ValueError) as error:
        raise ConfigError(f"checkpoint.store is {address!r}: {reason_of(error)}") from error
    except OSError as error:
        raise StorageError(
            f"checkpoint.store is {address!r}, which can't be opened: {reason_of(error)}"
        ) from error
    if files.type_name == "s3":
        files = _with_limits(files, dict(parse_qsl(parts.query)))
    return files, path.strip("/")


def _with_limits(files: fs.S3FileSystem, options: dict[str, str]) -> fs.S3FileSystem:
    """The same with limits in time, which an address can't name."""
    known = {
        name: options.pop(name)
        for name in ("scheme", "endpoint_override", "tls_ca_file_path")
        if name in options
    }
    options.pop("region", None)
    if options:  # what only an address can name
        return files
    return fs.S3FileSystem(
        region=files.region,
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=MOST_TRIES),
        **known,
    )


class ObjectStore:
    """The checkpoints of one run under a prefix.

    Attributes:
        where: The prefix, with its bucket.
    """

    def __init__(self, address: str, run_id: str) -> None:
        """A run that has no id yet has no checkpoints. Nobody is asked before the first method."""
        self._address, self._run_id = address, run_id
        self.where = f"{without_options(address)}/{run_id}".rstrip("/")

    @cached_property
    def _opened(self) -> tuple[fs.FileSystem, str]:
        return object_files(self._address)

    @property
    def _files(self) -> fs.FileSystem:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return f"{self._opened[1]}/{self._run_id}"

    def check(self) -> None:
        """Looks whether the bucket is there."""

        def look() -> tuple[str, bool]:
            files, path = self._opened
            bucket = path.partition("/")[0]
            if files.type_name not in _HAS_BUCKETS:
                return bucket, True
            try:
                return bucket, files.get_file_info(bucket).type != fs.FileType.NotFound
            except OSError as error:
                if "ACCESS_DENIED" in str(error):  # who may use a prefix alone may not ask this
                    return bucket, True
                raise

        asked = begun(look, "distrain-store")
        if not wait([asked], FIRST_ANSWER_S).done:
            raise StorageError(
                f"cannot reach {self.where}: no answer within {FIRST_ANSWER_S:.0f} s; look whether "
                "the address and its endpoint_override are right"
            )
        with self._asked(f"reach {self.where}"):
            bucket, is_there = asked.result()
        if not is_there:
            raise ConfigError(
                f"checkpoint.store names the bucket {bucket}, and there is none of that "
                "name: make it first, or name another"
            )

    def begin(self, about: bytes) -> None:
        """Writes run.json."""
        self.upload(ABOUT, about)

    def steps(self) -> list[int]:
        """Those whose state.json is there."""
        return sorted(step for step, found in self._listed().items() if STATE in found)

    def _listed(self) -> dict[int, set[str]]:
        """By step, the names of all objects that are there."""
        listed: dict[int, set[str]] = {}
        for info in self._infos(""):
            place, _, name = info.path.removeprefix(f"{self._root}/").partition("/")
            step = step_of(place)
            if step is not None:
                listed.setdefault(step, set()).update([name] if name else [])
        return listed

    def _infos(self, below: str) -> list[fs.FileInfo]:
        if not self._run_id:
            return []
        path = f"{self._root}/{below}".rstrip("/")
        selected = fs.FileSelector(path, recursive=True, allow_not_found=True)
        with self._asked(f"list {self.where}"):
            return list(self._files.get_file_info(selected))

    def has(self, step: int) -> bool:
        """Whether its state.json is there."""
        return self._state(step) is not None

    def _state(self, step: int) -> fs.FileInfo | None:
        with self._asked(f"look at {self.name_of(step)}"):
            info = self._files.get_file_info(self._path(step, STATE))
        return info if info.type == fs.FileType.File else None

    def name_of(self, step: int) -> str:
        """Its prefix."""
        return f"{self.where}/{folder_name(step)}"

    def _path(self, step: int, name: str) -> str:
        return f"{self._root}/{folder_name(step)}/{name}"

    def files(self, step: int) -> dict[str, int]:
        """Names and sizes."""
        prefix = self._path(step, "")
        return {
            info.path.removeprefix(prefix): info.size
            for info in sorted(self._infos(folder_name(step)), key=lambda info: info.path)
            if info.type == fs.FileType.File
        }

    def written(self, step: int) -> float | None:
        """When its state.json was."""
        info = self._state(step)
        return None if info is None or info.mtime_ns is None else info.mtime_ns / 1e9

    @contextmanager
    def open(self, step: int, name: str) -> Iterator[ReadableFile]:
        """Opens an object for reading."""
        with self._files.open_input_file(self._path(step, name)) as file:
            yield file

    @contextmanager
    def reading(self, step: int) -> Iterator[None]:
        """Within, an object that is not there says that the checkpoint is damaged."""
        with self._asked(f"read {self.name_of(step)}"):
            try:
                yield
            except FileNotFoundError as error:
                text = f"{self.name_of(step)} cannot be read: {reason_of(error)}"
                raise DamagedCheckpointError(text) from error

    @contextmanager
    def new(self, step: int) -> Iterator["_NewObjects"]:
        """Uploads to the place itself: it is no checkpoint before state.json is there."""
        if self._infos(folder_name(step)):  # of a writer that was cut off, or a damaged one
            self.remove(step)
        yield _NewObjects(self, folder_name(step))

    def put(self, name: str, chunks: Chunks) -> list[str]:
        """Uploads an object from where its bytes lie; the SHA-256 of each chunk, in order."""
        digests: list[str] = []
        in_flight = 0
        with self._asked(f"write {self.where}/{name}"):
            stream = self._files.open_output_stream(f"{self._root}/{name}", compression=None)
            for pieces in chunks:
                digest = hashlib.sha256()
                for piece in pieces:
                    digest.update(piece)
                    stream.write(piece)
                    in_flight += len(piece)
                digests.append(digest.hexdigest())
                if in_flight >= IN_FLIGHT_BYTES:
                    stream.flush()
                    in_flight = 0
            stream.close()
        return digests

    def upload(self, name: str, content: bytes) -> None:
        """Uploads a small object."""
        self.put(name, iter([[memoryview(content)]]))

    def remove(self, step: int) -> None:
        """Takes state.json first, so that no half of one is ever found."""
        with self._asked(f"remove the old checkpoint {self.name_of(step)}"):
            with suppress(FileNotFoundError):
                self._files.delete_file(self._path(step, STATE))
            with suppress(FileNotFoundError):
                self._files.delete_dir(f"{self._root}/{folder_name(step)}")

    def set_aside(self, step: int) -> str:
        """Renames state.json alone; all else stays where it is, until the step is saved anew."""
        aside = f"{folder_name(step)}/{DAMAGED}"
        with self._asked(f"move {self.name_of(step)} aside"):
            self._files.move(self._path(step, STATE), f"{self._root}/{aside}")
        return aside

    def kept_aside(self) -> list[str]:
        """The prefixes of damaged ones."""
        found = self._listed().items()
        return [folder_name(step) for step, names in sorted(found) if DAMAGED in names - {STATE}]

    def clear_leftovers(self) -> None:
        """Removes what has no state.json and never had one."""
        for step, names in self._listed().items():
            if not names & {STATE, DAMAGED}:
                self.remove(step)

    @contextmanager
    def _asked(self, what: str) -> Iterator[None]:
        """Within, what pyarrow raises says what could not be done."""
        try:
            yield
        except (OSError, pyarrow.ArrowException) as error:
            raise StorageError(f"cannot {what}: {reason_of(error)}") from error


class _NewObjects:
    def __init__(self, store: ObjectStore, place: str) -> None:
        self._store, self._place = store, place

    def put(self, name: str, num_bytes: int, chunks: Chunks) -> list[str]:  # noqa: ARG002
        return self._store.put(f"{self._place}/{name}", chunks)

    def commit(self, manifest: bytes) -> None:
        self._store.upload(f"{self._place}/{STATE}", manifest)
