"""An S3 server on loopback (moto's), whose requests a test can hold up, refuse and look at."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "checkpoints"

Matches = Callable[[str, str], bool]
"""Of a request's method, and its path with the query."""

DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class Gate:
    """Stands before the server; a request that matches waits until it is opened, or is refused.

    Attributes:
        seen: Methods and paths of all requests, in their order.
        reached: A request that matches has come.
    """

    def __init__(self, within: Callable[..., Iterable[bytes]]) -> None:
        self._within = within
        self._matches: Matches = lambda *_: False
        self._refuses = False
        self._opened = threading.Event()
        self.seen: list[tuple[str, str]] = []
        self.reached = threading.Event()

    def close(self, matches: Matches, *, refuses: bool = False) -> None:
        self._opened, self.reached = threading.Event(), threading.Event()
        self._matches, self._refuses = matches, refuses

    def open(self) -> None:
        self._matches = lambda *_: False
        self._opened.set()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        query = environ.get("QUERY_STRING", "")
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"] + f"?{query}" * bool(query)
        self.seen.append((method, path))
        opened = self._opened  # before anybody learns of it, who may close the gate anew
        if self._matches(method, path):
            self.reached.set()
            if self._refuses:
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [DENIED]
            opened.wait(600)
        return self._within(environ, start_response)


class Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_request(self, *_: object) -> None:
        pass


class S3Server:
    """A server under way.

    Attributes:
        gate: Before it.
        files: What it holds, as pyarrow sees it.
    """

    def __init__(self, gate: Gate, port: int) -> None:
        self.gate, self._port = gate, port
        self.files: fs.FileSystem = fs.FileSystem.from_uri(self.address("any"))[0]

    def address(self, prefix: str, bucket: str = BUCKET) -> str:
        """For `checkpoint.store`."""
        options = f"endpoint_override=127.0.0.1:{self._port}&scheme=http"
        return f"s3://{bucket}/{prefix}?{options}"

    def names(self, prefix: str) -> list[str]:
        """The keys of all objects below a prefix, without it."""
        root = f"{BUCKET}/{prefix}"
        found = self.files.get_file_info(
            fs.FileSelector(root, recursive=True, allow_not_found=True)
        )
        names = [info.path for info in found if info.type == fs.FileType.File]
        return sorted(name.removeprefix(f"{root}/") for name in names)

    def read(self, key: str) -> bytes:
        with self.files.open_input_stream(f"{BUCKET}/{key}", compression=None) as file:
            return bytes(file.read())

    def write(self, key: str, content: bytes) -> None:
        with self.files.open_output_stream(f"{BUCKET}/{key}", compression=None) as file:
            file.write(content)

    def flip(self, key: str, at: int) -> None:
        """Turns a bit of an object."""
        content = bytearray(self.read(key))
        content[at] ^= 1
        self.write(key, bytes(content))


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Starts a server with an empty bucket; processes that are started within know its keys."""
    gate = Gate(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, gate, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "someone")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patched.setenv("AWS_EC2_METADATA_DISABLED", "true")
        found = S3Server(gate, server.server_port)
        made, _ = fs.FileSystem.from_uri(found.address("any") + "&allow_bucket_creation=true")
        made.create_dir(BUCKET)
        yield found
    gate.open()
    server.shutdown()
    thread.join()
    server.server_close()
