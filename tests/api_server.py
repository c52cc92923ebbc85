"""A Kubernetes API server on loopback, as far as a job's client sees one.

It keeps objects with versions, and speaks discovery, creation, merge patches, deletion with owners,
lists, watches (bookmarks, 410, streams that break) and pod logs over plain HTTP. Tests change its
objects, break its streams and have it answer with errors. What it answers follows
https://kubernetes.io/docs/reference/using-api/api-concepts/.
"""

import itertools
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

Object = dict[str, Any]

NAMESPACE = "ml"
_WAIT_S = 60.0
"""A test that waits for longer waits in vain, however busy the machine is."""
_SERVED = {
    "/api/v1": ("configmaps", "events", "pods", "services"),
    "/apis/batch/v1": ("jobs",),
    "/apis/networking.k8s.io/v1": ("networkpolicies",),
}
CUSTOM = {
    "/apis/jobset.x-k8s.io/v1alpha2": ("jobsets",),
    "/apis/trainer.kubeflow.org/v1alpha1": ("trainjobs", "trainingruntimes"),
}
_PLURALS = {"NetworkPolicy": "networkpolicies"}


@dataclass
class Fault:
    """What a request is answered with in place of what it asks for.

    Attributes:
        method: Of the requests that it is for; also LIST and WATCH.
        path: A regular expression for their paths.
        status: Of the answer; 0 for none at all: the connection is closed.
        told: The `Status` object's fields.
        headers: Of the answer.
        times: For how many requests.
        is_done: Whether what was asked for is done all the same.
    """

    method: str
    path: str
    status: int = 0
    told: Object = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    is_done: bool = False


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    body: Object | None
    time_s: float
    token: str | None


class ApiServer:
    """The server; a context manager.

    Attributes:
        requests: All that came, in order.
        connections: From clients, as they stand now.
        is_slow_to_delete: Whether what is deleted stays, marked, until `finish_deletions`.
    """

    def __init__(self, *, custom: bool = True, tls: ssl.SSLContext | None = None) -> None:
        """`custom` is whether JobSet and Trainer are installed; with `tls` it speaks HTTPS."""
        self.requests: list[Asked] = []
        self.connections: set[socket.socket] = set()
        self.is_slow_to_delete = False
        self._served = {**_SERVED, **(CUSTOM if custom else {})}
        self._objects: dict[str, Object] = {}
        self._logs: dict[str, list[str]] = {}
        self._halves: dict[str, str] = {}
        self._changes: list[tuple[int, str, str, Object]] = []
        self._version, self._forgotten = 1000, 0
        self._uids = itertools.count(1)
        self._faults: list[Fault] = []
        self._breaks = {"watch": 0, "log": 0}
        self._open: list[str] = []
        self._marked: dict[int, int] = {}
        """The version that each open watch has been told of; 0 before it is told of one."""
        self._is_closing = False
        self._changed = threading.Condition(threading.RLock())
        handler = type("Handler", (_Handler,), {"api": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = False
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "ApiServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._http.shutdown()
        for connection in list(self.connections):
            _read_no_more(connection)
        self._http.server_close()  # waits for all that is being answered
        self._thread.join()

    def kubeconfig(self, folder: Path, **cluster: Any) -> Path:
        """Writes the file by which clients find this server."""
        known = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": self.url, **cluster}}],
            "users": [{"name": "someone", "user": {"token": "a-token"}}],
            "contexts": [
                {
                    "name": "stub",
                    "context": {"cluster": "stub", "user": "someone", "namespace": NAMESPACE},
                }
            ],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(known))
        return path

    # What a test does to it.

    def put(self, found: Object) -> Object:
        """Makes an object, or puts another in its place, as a controller would."""
        with self._changed:
            metadata = found["metadata"]
            path = f"{self._folder(found)}/{metadata['name']}"
            before = self._objects.get(path)
            metadata.setdefault("namespace", NAMESPACE)
            earlier = {} if before is None else before["metadata"]
            metadata.setdefault("uid", earlier.get("uid") or f"uid-{next(self._uids)}")
            made = earlier.get("creationTimestamp") or "2026-11-23T07:00:00Z"
            metadata.setdefault("creationTimestamp", made)
            self._note("ADDED" if before is None else "MODIFIED", path, deepcopy(found))
            return deepcopy(self._objects[path])

    def change(self, kind: str, name: str, **parts: Any) -> None:
        """Puts other parts into an object."""
        with self._changed:
            self.put({**self.get(kind, name), **parts})

    def get(self, kind: str, name: str) -> Object:
        """An object that is there."""
        return deepcopy(self._objects[self._path(kind, name)])

    def names(self) -> list[str]:
        """Kinds and names of all objects, in order."""
        return sorted(
            f"{each['kind']}/{each['metadata']['name']}" for each in self._objects.values()
        )

    def remove(self, kind: str, name: str) -> None:
        """Removes an object and all that it owns."""
        with self._changed:
            self._remove(self._path(kind, name))

    def finish_deletions(self) -> None:
        """Removes what is marked for it."""
        with self._changed:
            for path, found in list(self._objects.items()):
                if "deletionTimestamp" in found["metadata"] and path in self._objects:
                    self._remove(path)

    def fail(self, method: str, path: str, status: int = 0, message: str = "", **more: Any) -> None:
        """Answers requests to come in another way; see `Fault`."""
        told = {**({"message": message} if message else {}), **more.pop("told", {})}
        with self._changed:
            self._faults.append(Fault(method, path, status, told, **more))

    def mend(self) -> None:
        """Answers as asked again."""
        with self._changed:
            self._faults.clear()

    def break_streams(self, what: str) -> None:
        """Closes all watches (`watch`) or logs (`log`) in the middle."""
        with self._changed:
            self._breaks[what] += 1
            self._changed.notify_all()

    def forget(self) -> None:
        """Forgets all versions up to now, as after a compaction."""
        with self._changed:
            self._forgotten = self._version
            self._changes.clear()

    def write(self, pod: str, *lines: str) -> None:
        """Adds lines to a pod's log, each with its time before it."""
        with self._changed:
            self._logs.setdefault(pod, []).extend(lines)
            self._changed.notify_all()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within, several things happen at once, as clients see it."""
        with self._changed:
            yield

    def bookmarked(self) -> None:
        """Waits until every watch has been told of the newest version."""
        self.until(lambda: all(at == self._version for at in self._marked.values()))

    def write_half(self, pod: str, line: str) -> None:
        """Sends the first half of a line to who follows a pod's log, and ends that answer."""
        with self._changed:
            self._halves[pod] = line[: -len(line) // 4]
            self._changed.notify_all()

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits until something holds of the requests or the streams."""
        with self._changed:
            assert self._changed.wait_for(holds, _WAIT_S), "waited in vain"

    def asked(self, method: str, path: str) -> list[Asked]:
        """The requests so far of a method (also LIST, WATCH) to paths that a pattern fits."""
        with self._changed:
            return [
                each
                for each in self.requests
                if each.method == method and re.search(path, each.path)
            ]

    def is_open(self, path: str) -> bool:
        """Whether a stream to such a path is being sent."""
        return any(re.search(path, each) for each in self._open)

    # What clients ask of it.

    def connected(self, connection: socket.socket) -> None:
        """Notes a connection, which its client may keep for more; its thread comes when it can."""
        with self._changed:
            self.connections.add(connection)
            if self._is_closing:
                _read_no_more(connection)

    def meet(self, asked: Asked) -> Fault | None:
        """Notes a request; gives the fault that is for it."""
        with self._changed:
            self.requests.append(asked)
            self._changed.notify_all()
            for fault in self._faults:
                if fault.method == asked.method and re.search(fault.path, asked.path):
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                    return fault
        return None

    def answer(self, asked: Asked) -> tuple[int, Object]:
        """Status and object for a request that is no stream."""
        with self._changed:
            if asked.path in self._served:
                resources = [{"name": name} for name in self._served[asked.path]]
                return 200, {"kind": "APIResourceList", "resources": resources}
            if not any(asked.path.startswith(f"{root}/namespaces/") for root in self._served):
                return 404, {"message": "404 page not found"}
            answer: Callable[[Asked], tuple[int, Object]] = getattr(
                self, f"_{asked.method.lower()}"
            )
            return answer(asked)

    def stream(self, asked: Asked) -> Iterator[bytes]:
        """The parts of a watch or a log; ends early with ConnectionError where it is to break."""
        kind = "watch" if asked.method == "WATCH" else "log"
        with self._changed:
            breaks = self._breaks[kind]
            self._open.append(asked.path)
            if kind == "watch":
                self._marked[id(asked)] = 0
            self._changed.notify_all()
        parts = self._watched(asked) if kind == "watch" else self._logged(asked)
        try:
            while True:
                with self._changed:
                    if self._is_closing:
                        return
                    if self._breaks[kind] != breaks:
                        raise ConnectionError
                    part = next(parts, None)
                    if part is None:
                        return
                    if not part:
                        self._changed.wait(_WAIT_S)
                        continue
                yield part
        finally:
            with self._changed:
                self._open.remove(asked.path)
                self._marked.pop(id(asked), None)
                self._changed.notify_all()

    def _list(self, asked: Asked) -> tuple[int, Object]:
        items = [
            deepcopy(each)
            for path, each in self._objects.items()
            if path.startswith(f"{asked.path}/") and _fits(each, asked.query)
        ]
        return 200, {"metadata": {"resourceVersion": str(self._version)}, "items": items}

    def _get(self, asked: Asked) -> tuple[int, Object]:
        found = self._objects.get(asked.path)
        return (404, {"message": "not found"}) if found is None else (200, deepcopy(found))

    def _post(self, asked: Asked) -> tuple[int, Object]:
        assert asked.body is not None
        assert asked.path == self._folder(asked.body)
        name = asked.body["metadata"]["name"]
        if f"{asked.path}/{name}" in self._objects:
            return 409, {"reason": "AlreadyExists", "message": f'"{name}" already exists'}
        made = deepcopy(asked.body)
        made["metadata"]["managedFields"] = [{"manager": asked.query.get("fieldManager")}]
        return 201, self.put(made)

    def _patch(self, asked: Asked) -> tuple[int, Object]:
        if asked.path not in self._objects:
            return 404, {"message": "not found"}
        assert asked.body is not None
        return 200, self.put(_merged(deepcopy(self._objects[asked.path]), asked.body))

    def _delete(self, asked: Asked) -> tuple[int, Object]:
        if asked.path not in self._objects:
            return 404, {"message": "not found"}
        if self.is_slow_to_delete:
            found = deepcopy(self._objects[asked.path])
            found["metadata"]["deletionTimestamp"] = "2026-11-23T08:00:00Z"
            self.put(found)
            self._remove_owned(found)  # at once: the garbage collector waits for pods alone
        else:
            self._remove(asked.path)
        return 200, {"status": "Success"}

    def _watched(self, asked: Asked) -> Iterator[bytes]:
        """Events as lines; empty where there is none for now."""
        version, bookmarked = int(asked.query["resourceVersion"]), 0
        if version < self._forgotten:
            told = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            yield _line({"type": "ERROR", "object": told})
            return
        while True:
            later = (
                change
                for change in self._changes
                if change[0] > version
                and change[2].startswith(f"{asked.path}/")
                and _fits(change[3], asked.query)
            )
            version, what, _, found = next(later, (version, "", "", {}))
            if found:
                yield _line({"type": what, "object": found})
            elif bookmarked < self._version:
                version = bookmarked = self._marked[id(asked)] = self._version
                mark = {"metadata": {"resourceVersion": str(version)}}
                yield _line({"type": "BOOKMARK", "object": mark})
                self._changed.notify_all()
            else:
                yield b""

    def _logged(self, asked: Asked) -> Iterator[bytes]:
        path = asked.path.removesuffix("/log")
        pod, query = path.rpartition("/")[2], asked.query
        sent = 0
        if "tailLines" in query:
            sent = max(0, len(self._logs.get(pod, [])) - int(query["tailLines"]))
        while True:
            lines = self._logs.get(pod, [])
            # It may grow at each line that is sent.
            while sent < len(lines):
                line = lines[sent]
                sent += 1
                stamp, _, text = line.partition(" ")
                if stamp[:19] >= query.get("sinceTime", "")[:19]:
                    yield f"{line if 'timestamps' in query else text}\n".encode()
            if pod in self._halves:
                yield self._halves.pop(pod).encode()
                return
            phase = self._objects.get(path, {}).get("status", {}).get("phase", "Failed")
            if "follow" not in query or (phase in ("Succeeded", "Failed") and sent == len(lines)):
                return
            yield b""

    def _note(self, what: str, path: str, found: Object) -> None:
        self._version += 1
        found["metadata"]["resourceVersion"] = str(self._version)
        if what == "DELETED":
            del self._objects[path]
        else:
            self._objects[path] = found
        self._changes.append((self._version, what, path, deepcopy(found)))
        self._changed.notify_all()

    def _remove(self, path: str) -> None:
        found = self._objects[path]
        self._note("DELETED", path, found)
        self._remove_owned(found)

    def _remove_owned(self, found: Object) -> None:
        for other, each in list(self._objects.items()):
            owners = each["metadata"].get("ownerReferences", ())
            if any(owner["uid"] == found["metadata"]["uid"] for owner in owners):
                self._remove(other)

    def _path(self, kind: str, name: str) -> str:
        paths = [
            path
            for path, each in self._objects.items()
            if each["kind"] == kind and each["metadata"]["name"] == name
        ]
        return paths[0]

    @staticmethod
    def _folder(found: Object) -> str:
        version, kind = found["apiVersion"], found["kind"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        return f"{root}/namespaces/{NAMESPACE}/{_PLURALS.get(kind, f'{kind.lower()}s')}"


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for an ACK of its head

    def setup(self) -> None:
        super().setup()
        self.api.connected(self.connection)

    def finish(self) -> None:
        self.api.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        method = self.command
        if "watch" in query:
            method = "WATCH"
        elif method == "GET" and re.search(r"/namespaces/[^/]+/[^/]+$", path):
            method = "LIST"
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        token = self.headers.get("Authorization")
        asked = Asked(method, path, query, body, time.monotonic(), token)
        fault = self.api.meet(asked)
        done: Object = {}
        if fault is not None and fault.is_done:
            _, done = self.api.answer(asked)
        if fault is not None and not fault.status:
            self.close_connection = True
        elif fault is not None:
            self._send(fault.status, {**done, **fault.told}, fault.headers)
        elif method == "WATCH" or path.endswith("/log"):
            self._stream(asked)
        else:
            self._send(*self.api.answer(asked), {})

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815 - named by http.server

    def _send(self, status: int, told: Object, headers: dict[str, str]) -> None:
        if status >= 400:
            told = {"kind": "Status", "status": "Failure", "code": status, **told}
        body = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, asked: Asked) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        with suppress(ConnectionError):  # the client, or the test, has had enough
            for part in self.api.stream(asked):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")


def _read_no_more(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


def _line(told: Object) -> bytes:
    return json.dumps(told).encode() + b"\n"


def _fits(found: Object, query: dict[str, str]) -> bool:
    metadata = found["metadata"]
    labels = metadata.get("labels", {})
    wanted = [
        each.split("=", 1) for each in filter(None, query.get("labelSelector", "").split(","))
    ]
    field, _, value = query.get("fieldSelector", "").partition("=")
    known = {"": "", "metadata.name": metadata["name"], "type": found.get("type")}
    return all(labels.get(key) == value for key, value in wanted) and known[field] == value


def _merged(found: Object, change: Object) -> Object:
    """RFC 7396."""
    for name, value in change.items():
        if isinstance(value, dict):
            found[name] = _merged(found.get(name, {}), value)
        elif value is None:
            found.pop(name, None)
        else:
            found[name] = value
    return found
