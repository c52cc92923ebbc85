"""A cluster's API server: who it is by a kubeconfig, and single requests to it.

The `kubernetes` package finds the way in (kubeconfig, credentials, certificates, proxies) and
carries the requests; it is imported only where a cluster is asked. Objects stay what they are in
JSON, since two of the three forms of a job are of kinds that the package has no classes for.
"""

import json
import re
import shlex
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.dynamic import DynamicClient
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Retry

from launch.kubernetes.cluster_errors import (
    BUSY,
    ClusterError,
    lost,
    refused,
    retry_after_s,
    unreachable,
    unusable,
)
from launch.kubernetes.kinds import POD, Kind

Object = dict[str, Any]
Query = Sequence[tuple[str, str]]

_TIMEOUT_S = (10, 30)
"""To connect; between two parts of an answer. A webhook may take 30 s, and is asked again."""

_STREAM_TIMEOUT_S = (10, 3600)
"""A log may be silent for long; whether the other side still lives, TCP finds out."""

_CONNECTIONS = 80
_FOREGROUND = {"propagationPolicy": "Foreground"}


class _Retries(Retry):
    """Sends a request again that failed for a reason that may pass; waits as long as is asked.

    A creation, too: that the first one went through is known by who the server noted as the maker.
    """

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        return retry_after_s(response.headers)


class Cluster:
    """An API server, as one user sees one namespace of it.

    Attributes:
        host: The server's address.
        namespace: Where everything happens.
    """

    def __init__(
        self, configuration: Configuration, namespace: str, options: Sequence[str] = ()
    ) -> None:
        """Asks nothing yet.

        Args:
            configuration: Where the server is, and who asks.
            namespace: In which everything happens.
            options: Words by which another command finds the same cluster and namespace.
        """
        self._options = tuple(options)
        self.host, self.namespace = str(configuration.host), namespace
        configuration.socket_options = _keep_alive()
        configuration.connection_pool_maxsize = _CONNECTIONS
        configuration.retries = _patience()
        # The package's own discovery would read all that the cluster has.
        self._patient = DynamicClient(ApiClient(configuration), discoverer=_undiscovered)
        configuration.retries = False
        self._hasty = DynamicClient(ApiClient(configuration), discoverer=_undiscovered)
        self._streams: set[BaseHTTPResponse] = set()
        self._has_ended_streams = False
        self._lock = threading.Lock()

    def command(self, action: str, name: str) -> str:
        """A command for the user to go on with."""
        return shlex.join(["distrain", "kubernetes", action, name, *self._options])

    def serves(self, kind: Kind) -> bool:
        """Whether the cluster knows a kind: whether what defines it is installed."""
        found = self._object("GET", kind.root, kind.full_name)
        return found is not None and any(
            resource["name"] == kind.plural for resource in found.get("resources", ())
        )

    def read(self, kind: Kind, name: str, *, patient: bool = True) -> Object | None:
        """An object, or None where there is none of that name (or kind).

        Args:
            kind: Of it.
            name: Of it.
            patient: Whether a request that fails for a reason that may pass is sent again.
        """
        path = kind.path(self.namespace, name)
        return self._object("GET", path, kind.full_name, patient=patient)

    def listed(self, kind: Kind, query: Query = (), *, patient: bool = True) -> Object:
        """The list of a kind's objects: `items`, and the `resourceVersion` they are of."""
        path = kind.path(self.namespace)
        answer = self._send("LIST", path, kind.full_name, query=query, patient=patient)
        return _json(answer)

    def create(self, kind: Kind, manifest: Object, *, manager: str) -> Object:
        """Creates an object, and tells on the terminal what the server warns of.

        Args:
            kind: Of it.
            manifest: The object.
            manager: Who the server is to note as its maker.

        Raises:
            ClusterError: it is there already (409), unknown fields, no permission and so on.
        """
        query = (("fieldManager", manager), ("fieldValidation", "Strict"))
        path = kind.path(self.namespace)
        answer = self._send("POST", path, kind.full_name, body=manifest, query=query)
        for warning in answer.headers.getlist("Warning"):
            print(f"the cluster warns: {_warning_text(warning)}", file=sys.stderr)
        return _json(answer)

    def patch(self, kind: Kind, name: str, change: Object, *, manager: str) -> None:
        """Merges a change into an object."""
        path, query = kind.path(self.namespace, name), (("fieldManager", manager),)
        self._send("PATCH", path, kind.full_name, body=change, query=query)

    def remove(self, kind: Kind, name: str) -> bool:
        """Has an object removed, all that belongs to it before it; False where there is none."""
        path = kind.path(self.namespace, name)
        return self._object("DELETE", path, kind.full_name, body=_FOREGROUND) is not None

    @contextmanager
    def watch(self, kind: Kind, query: Query) -> Iterator[Iterator[bytes]]:
        """The lines of a watch, as they come."""
        path = kind.path(self.namespace)
        with self._stream("WATCH", path, kind.full_name, query) as lines:
            yield lines

    @contextmanager
    def pod_log(self, pod: str, query: Query) -> Iterator[Iterator[bytes]]:
        """The lines of a pod's log, as they come."""
        path = f"{POD.path(self.namespace, pod)}/log"
        with self._stream("GET", path, "pods/log", query) as lines:
            yield lines

    def end_streams(self) -> None:
        """Ends all watches and logs that other threads wait for, and any that begin from now on."""
        with self._lock:
            self._has_ended_streams = True
            for answer in self._streams:
                # It may have come to its end by itself just now.
                with suppress(ValueError, RuntimeError, OSError):
                    answer.shutdown()

    def close(self) -> None:
        """Lets go of all connections."""
        self.end_streams()
        self._patient.client.close()
        self._hasty.client.close()

    @contextmanager
    def _stream(self, method: str, path: str, what: str, query: Query) -> Iterator[Iterator[bytes]]:
        answer = self._send(method, path, what, query=query, patient=False, keeps_open=True)
        with self._lock:
            self._streams.add(answer)
            has_ended = self._has_ended_streams
        try:
            if has_ended:
                raise lost("nothing more is to be read")
            with self._worded(method, what):
                yield lines_of(answer.stream(1 << 16))
        finally:
            with self._lock:
                self._streams.discard(answer)
            answer.close()

    def _object(self, method: str, path: str, what: str, **more: Any) -> Object | None:
        try:
            return _json(self._send(method, path, what, **more))
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    def _send(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Object | None = None,
        query: Query = (),
        patient: bool = True,
        keeps_open: bool = False,
    ) -> BaseHTTPResponse:
        """One request, and its answer where that is a good one."""
        client = self._patient if patient else self._hasty
        merges = {"content_type": "application/merge-patch+json"} if method == "PATCH" else {}
        with self._worded(method, what):
            try:
                answer = client.request(
                    "GET" if method in ("LIST", "WATCH") else method,
                    path,
                    body=body,
                    query_params=list(query),
                    serialize=False,
                    _request_timeout=_STREAM_TIMEOUT_S if keeps_open else _TIMEOUT_S,
                    **merges,
                )
            except HTTPError:
                raise
            except ValueError:  # which repeats what is at fault, and that may be a secret
                raise unusable(self.host) from None
            found = cast("BaseHTTPResponse", answer)
            if not keeps_open:
                _ = found.data  # read here, where what may break is put into words
            return found

    @contextmanager
    def _worded(self, method: str, what: str) -> Iterator[None]:
        """Gives what may fail within the words for it."""
        try:
            yield
        except ApiException as error:
            if not error.status:
                raise unreachable(self.host, str(error.reason)) from error
            raise refused(
                error.status,
                error.body,
                error.headers or {},
                method=method,
                what=what,
                namespace=self.namespace,
                host=self.host,
            ) from error
        except (HTTPError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise unreachable(self.host, str(reason)) from error


def lines_of(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Lines with their ends; the last one may have come without."""
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest


def _json(answer: BaseHTTPResponse) -> Object:
    try:
        found: Object = json.loads(answer.data)
    except ValueError as error:
        raise lost(f"an API server answers in JSON, and not {answer.data[:80]!r}") from error
    return found


def _patience() -> _Retries:
    return _Retries(
        total=None,
        connect=2,
        read=2,
        status=4,
        redirect=0,
        other=0,
        backoff_factor=0.2,
        backoff_max=5.0,
        status_forcelist=BUSY,
        allowed_methods=None,
        raise_on_redirect=False,
        raise_on_status=False,
    )


def _undiscovered(_client: DynamicClient, _cache_file: str | None) -> None:
    """In place of a discovery: nothing is asked of the server."""


def _warning_text(header: str) -> str:
    """The text of `299 - "text"`."""
    quoted = re.search(r'"((?:[^"\\]|\\.)*)"', header)
    return header if quoted is None else re.sub(r"\\(.)", r"\1", quoted[1])


def _keep_alive() -> list[tuple[int, int, int]]:
    """Options of a socket that notices within a minute that the other side is gone."""
    options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
